"""How Python kernels are set up (code-interpreter 7)."""

c = get_config()  # noqa: F821  # IPython's own name

# Tracebacks are texts for programs.
c.InteractiveShell.colors = "nocolor"
# Long sequences are shown whole.
c.PlainTextFormatter.max_seq_length = 0
# A kernel's history is its own, and costs no file.
c.HistoryManager.hist_file = ":memory:"
c.IPCompleter.use_jedi = False
