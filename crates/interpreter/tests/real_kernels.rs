//! The program with real kernels: the folder `SANDYARD_TEST_KERNELS` has their specifications, which
//! `scripts/setup test-kernels` makes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

struct TestInterpreter {
    child: Child,
    claims: ChildStdin,
    port: u16,
}

impl TestInterpreter {
    fn start(run_folder: &Path) -> anyhow::Result<Self> {
        Self::start_with(run_folder, &[])
    }

    fn start_with(run_folder: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let kernels =
            std::env::var("SANDYARD_TEST_KERNELS").context("SANDYARD_TEST_KERNELS is not set")?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_sandyard-interpreter"))
            .args(arguments)
            .args(["--listen", "127.0.0.1:0", "--cwd", "/tmp", "--kernels", &kernels])
            .arg("--run")
            .arg(run_folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let claims = child.stdin.take().context("standard input")?;
        let mut lines = BufReader::new(child.stderr.take().context("standard error")?).lines();
        let port = loop {
            let line = lines.next().context("it ended before it listened")??;
            if let Some((_, address)) = line.split_once("listening on ") {
                break address.rsplit(':').next().context("a port")?.parse()?;
            }
        };
        // What it says later is nobody's, but must go somewhere.
        thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, claims, port })
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )?;
        Ok(stream)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        answer(self.send(method, path, "", body)?)
    }

    /// The lines of an execution.
    fn execute(&self, body: &Value) -> anyhow::Result<Vec<Value>> {
        let (status, text) = self.request("POST", "/execute", &body.to_string())?;
        ensure!(status == 200, "{status}: {text}");
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// The text of the value of code.
    fn value(&self, code: &str) -> anyhow::Result<String> {
        let lines = self.execute(&json!({ "code": code }))?;
        let result = lines.iter().find(|line| line["type"] == "result");
        let text = result.and_then(|result| result["text"].as_str());
        Ok(text.with_context(|| format!("no value: {lines:?}"))?.to_owned())
    }
}

impl Drop for TestInterpreter {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn answer(mut stream: TcpStream) -> anyhow::Result<(u16, String)> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        return Ok((status, unchunked(&text)?));
    }
    Ok((status, body.to_owned()))
}

/// The body of a whole answer that came in chunks.
fn unchunked(answer: &str) -> anyhow::Result<String> {
    let (_, mut rest) = answer.split_once("\r\n\r\n").context("no head")?;
    let mut whole = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").context("a chunk without its length")?;
        let length = usize::from_str_radix(length, 16)?;
        if length == 0 {
            return Ok(whole);
        }
        whole.push_str(after.get(..length).context("a chunk that is cut off")?);
        rest = after.get(length + 2..).context("a chunk without its end")?;
    }
}

/// Waits for the first line of an execution: from then on its code runs. Returns what was read.
fn begun(stream: &mut TcpStream) -> anyhow::Result<String> {
    read_up_to(stream, "number_of_executions")
}

fn read_up_to(stream: &mut TcpStream, text: &str) -> anyhow::Result<String> {
    let (mut seen, mut buffer) = (String::new(), [0; 256]);
    while !seen.contains(text) {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "it ended before it began: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..length])?);
    }
    Ok(seen)
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["type"].as_str()).collect()
}

fn error<'a>(lines: &'a [Value], name: &str) -> anyhow::Result<&'a str> {
    let found = lines.iter().find(|line| line["type"] == "error" && line["name"] == name);
    found.and_then(|line| line["value"].as_str()).with_context(|| format!("no {name}: {lines:?}"))
}

#[test]
#[ignore = "needs kernels"]
fn cells_have_their_lines_and_keep_their_state() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let interpreter = TestInterpreter::start(&folder.path().join("run"))?;
    assert_eq!(interpreter.request("GET", "/health", "")?, (200, "\"OK\"".to_owned()));
    let failed = interpreter.execute(&json!({ "code": "this is none" }))?;
    assert_eq!(types(&failed), ["number_of_executions", "error", "end_of_execution"]);
    let lines = interpreter.execute(&json!({
        "code": "import os\nx = 1\nprint('a', flush=True)\nos.environ['A']", "env_vars": { "A": "q\"'\\\n" },
    }))?;
    assert_eq!(types(&lines), ["number_of_executions", "stdout", "result", "end_of_execution"]);
    assert_eq!(lines[0]["execution_count"], 2);
    assert_eq!(interpreter.value("x, os.environ.get('A')")?, "(1, None)");
    for language in ["javascript", "typescript"] {
        let lines = interpreter
            .execute(&json!({ "code": "const a = await 41; a + 1", "language": language }))?;
        assert_eq!(lines[1]["text"], "42", "{lines:?}");
    }
    let (status, listed) = interpreter.request("GET", "/contexts", "")?;
    let listed: Vec<Value> = serde_json::from_str(&listed)?;
    assert_eq!(status, 200);
    assert_eq!(
        listed.iter().map(|c| c["language"].as_str()).collect::<Vec<_>>(),
        [Some("python"), Some("javascript"), Some("typescript")]
    );
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn what_the_daemon_tells_is_used() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut interpreter = TestInterpreter::start_with(&folder.path().join("run"), &["--claims"])?;
    // Until it knows whose it is it runs nothing.
    let body = json!({ "code": "import os; os.environ['A']" }).to_string();
    let waiting = interpreter.send("POST", "/execute", "", &body)?;
    let claim = json!({ "variables": { "A": "1", "SANDYARD_MAX_CONTEXTS": "3" }, "accessToken": "t", "tokenDemanded": false });
    writeln!(interpreter.claims, "{claim}")?;
    let (status, lines) = answer(waiting)?;
    assert_eq!(status, 200);
    assert!(lines.contains(r#""text":"1""#), "{lines}");
    let own =
        interpreter.execute(&json!({ "code": "os.environ['A']", "env_vars": { "A": "2" } }))?;
    assert_eq!(own[1]["text"], "2");
    assert_eq!(interpreter.value("os.environ['A']")?, "1");
    for (token, expected) in [("t", 200), ("x", 401)] {
        let header = format!("X-Access-Token: {token}\r\n");
        let sent = interpreter.send("POST", "/execute", &header, r#"{"code":"1"}"#)?;
        assert_eq!(answer(sent)?.0, expected);
    }
    assert_eq!(interpreter.request("POST", "/contexts", "{}")?.0, 200);
    let (status, text) = interpreter.request("POST", "/contexts", "{}")?;
    assert_eq!(status, 500);
    assert!(text.contains("3 contexts"), "{text}");
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn a_client_that_leaves_interrupts_and_others_go_on() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let interpreter = TestInterpreter::start(&folder.path().join("run"))?;
    for code in ["while True: pass", "import time\ntime.sleep(300)"] {
        let code = format!("x = 7\nprint('it runs', flush=True)\n{code}");
        let body = json!({ "code": code }).to_string();
        let mut stream = interpreter.send("POST", "/execute", "", &body)?;
        let _seen = read_up_to(&mut stream, "it runs")?;
        let other = interpreter.execute(&json!({ "code": "1", "language": "javascript" }))?;
        assert_eq!(other[1]["text"], "1", "another context does not wait");
        drop(stream);
        let begun = Instant::now();
        assert_eq!(interpreter.value("x + 1")?, "8");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn ends_are_told() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let run = folder.path().join("run");
    let mut interpreter = TestInterpreter::start(&run)?;
    let ended = interpreter.execute(&json!({ "code": "x = 1; import os; os._exit(3)" }))?;
    assert!(error(&ended, "ContextRestarting")?.contains("exit status: 3"));
    assert_eq!(types(&ended).last(), Some(&"end_of_execution"));
    let after = interpreter.execute(&json!({ "code": "x" }))?;
    assert_eq!(error(&after, "NameError")?, "name 'x' is not defined");

    let (_, listed) = interpreter.request("GET", "/contexts", "")?;
    let listed: Vec<Value> = serde_json::from_str(&listed)?;
    let id = listed[0]["id"].as_str().context("an id")?.to_owned();
    let pid: i32 = interpreter.value("os = __import__('os'); os.getpid()")?.parse()?;
    // As SIGKILL does to it.
    interpreter.child.kill()?;
    interpreter.child.wait()?;
    let until = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{pid}")).exists() {
        ensure!(Instant::now() < until, "the kernel outlives its interpreter");
        thread::sleep(Duration::from_millis(10));
    }
    let next = TestInterpreter::start(&run)?;
    let body = json!({ "code": "1", "context_id": id }).to_string();
    let (status, text) = next.request("POST", "/execute", &body)?;
    assert_eq!(status, 404);
    assert!(
        text.starts_with(&format!("Context {id} not found: the interpreter was restarted")),
        "{text}"
    );
    assert_eq!(next.value("1")?, "1");
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn a_restart_ends_what_runs_and_a_reader_that_is_slow_loses_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let interpreter = TestInterpreter::start(&folder.path().join("run"))?;
    let body = json!({ "code": "for i in range(20000): print('line', i)" }).to_string();
    let stream = interpreter.send("POST", "/execute", "", &body)?;
    thread::sleep(Duration::from_millis(500));
    let (_, text) = answer(stream)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let printed: String = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert_eq!(printed.lines().count(), 20_000);
    assert!(printed.ends_with("line 19999\n"));

    let (_, made) = interpreter.request("POST", "/contexts", r#"{"cwd":"/"}"#)?;
    let made: Value = serde_json::from_str(&made)?;
    let id = made["id"].as_str().context("an id")?;
    let body = json!({ "code": "import time; time.sleep(300)", "context_id": id }).to_string();
    let mut running = interpreter.send("POST", "/execute", "", &body)?;
    let seen = begun(&mut running)?;
    assert_eq!(
        interpreter.request("POST", &format!("/contexts/{id}/restart"), "")?,
        (200, "null".to_owned())
    );
    let mut rest = String::new();
    running.read_to_string(&mut rest)?;
    let text = unchunked(&(seen + &rest))?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    error(&lines, "UnexpectedEndOfExecution")?;
    let again =
        interpreter.execute(&json!({ "code": "import os; os.getcwd()", "context_id": id }))?;
    assert_eq!(again[1]["text"], "/");
    assert_eq!(interpreter.request("DELETE", &format!("/contexts/{id}"), "")?.0, 200);
    assert_eq!(interpreter.request("DELETE", &format!("/contexts/{id}"), "")?.0, 404);
    Ok(())
}

/// All lines of an answer of which a part was read.
fn lines_of(mut stream: TcpStream, mut seen: String) -> anyhow::Result<Vec<Value>> {
    stream.read_to_string(&mut seen)?;
    Ok(unchunked(&seen)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

#[test]
#[ignore = "needs kernels"]
fn what_waits_in_a_removed_context_is_told_so() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let interpreter = TestInterpreter::start(&folder.path().join("run"))?;
    let (_, made) = interpreter.request("POST", "/contexts", "{}")?;
    let made: Value = serde_json::from_str(&made)?;
    let id = made["id"].as_str().context("an id")?;
    let execute = |code: &str| {
        let body = json!({ "code": code, "context_id": id }).to_string();
        interpreter.send("POST", "/execute", "", &body)
    };
    let mut running = execute("import time; time.sleep(300)")?;
    let seen = begun(&mut running)?;
    let mut waiting = execute("1")?;
    // It waits once its head is answered.
    let mut first = [0; 8];
    waiting.read_exact(&mut first)?;
    assert_eq!(interpreter.request("DELETE", &format!("/contexts/{id}"), "")?.0, 200);
    for lines in [lines_of(running, seen)?, lines_of(waiting, String::from_utf8(first.to_vec())?)?]
    {
        assert_eq!(error(&lines, "UnexpectedEndOfExecution")?, "the context was removed");
        assert_eq!(types(&lines).last(), Some(&"end_of_execution"));
    }
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn a_kernel_that_dies_while_nothing_runs_is_told_by_the_next_cell() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let interpreter = TestInterpreter::start(&folder.path().join("run"))?;
    let pid = interpreter.value("x = 1\n__import__('os').getpid()")?;
    ensure!(Command::new("kill").args(["-9", &pid]).status()?.success(), "it is not there");
    let until = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{pid}")).exists() {
        ensure!(Instant::now() < until, "it does not end");
        thread::sleep(Duration::from_millis(10));
    }
    let told = interpreter.execute(&json!({ "code": "x" }))?;
    assert!(error(&told, "ContextRestarting")?.contains("all variables are lost"), "{told:?}");
    let after = interpreter.execute(&json!({ "code": "x" }))?;
    error(&after, "NameError")?;
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn output_that_nobody_reads_is_bounded_and_one_large_message_is_not() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let interpreter = TestInterpreter::start(&folder.path().join("run"))?;
    let large = interpreter.execute(&json!({ "code": "print('x' * 70_000_000)" }))?;
    ensure!(large.iter().all(|line| line["type"] != "error"), "one large message is refused");
    let printed = large.iter().filter_map(|line| line["text"].as_str()).map(str::len);
    assert_eq!(printed.sum::<usize>(), 70_000_001);

    let ended = folder.path().join("interrupted");
    let code = format!(
        "try:\n    while True: print('y' * 1_000_000)\nexcept KeyboardInterrupt:\n    open('{}', 'w')",
        ended.display()
    );
    let mut unread =
        interpreter.send("POST", "/execute", "", &json!({ "code": code }).to_string())?;
    let seen = begun(&mut unread)?;
    let until = Instant::now() + Duration::from_secs(30);
    while !ended.exists() {
        ensure!(Instant::now() < until, "it is not interrupted");
        thread::sleep(Duration::from_millis(20));
    }
    let lines = lines_of(unread, seen)?;
    // Not its output: it is large.
    let told: Vec<&Value> = lines.iter().filter(|line| line["type"] != "stdout").collect();
    assert!(told.iter().any(|line| line["name"] == "OutputLimitExceeded"), "{told:?}");
    assert_eq!(told.last().map(|line| &line["type"]), Some(&json!("end_of_execution")));
    assert_eq!(interpreter.value("1")?, "1");
    Ok(())
}

#[test]
#[ignore = "needs kernels"]
fn bash_keeps_its_step_whatever_is_asked_of_it() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut interpreter = TestInterpreter::start_with(&folder.path().join("run"), &["--claims"])?;
    let claim =
        json!({ "variables": { "GLOBAL": "kept" }, "accessToken": "t", "tokenDemanded": false });
    writeln!(interpreter.claims, "{claim}")?;
    let run = |code: &str, env: Value| {
        interpreter.execute(&json!({ "code": code, "language": "bash", "env_vars": env }))
    };
    let told = |code: &str| -> anyhow::Result<String> {
        let lines = run(code, json!({}))?;
        Ok(lines.iter().filter_map(|line| line["text"].as_str()).collect())
    };
    assert_eq!(told("echo $GLOBAL; pwd")?, "kept\n/tmp\n");
    // Names that bash keeps for itself.
    let lines = run("echo $OTHER", json!({ "UID": "5", "PPID": "1", "OTHER": "set" }))?;
    assert_eq!(lines[1]["text"], "set\n", "{lines:?}");

    for unfinished in ["echo \"open", "if true; then"] {
        let lines = run(unfinished, json!({}))?;
        error(&lines, "NoReply")?;
        assert_eq!(told("echo on")?, "on\n", "after {unfinished}");
    }

    // A program that takes its time to end: one interrupt is enough, and no output is another cell's.
    let code = "python3 -c 'import signal, time; signal.signal(2, lambda *_: (time.sleep(0.7), exit(0))); \
                print(\"ready\", flush=True); time.sleep(300)'";
    let body = json!({ "code": code, "language": "bash" }).to_string();
    let mut stream = interpreter.send("POST", "/execute", "", &body)?;
    let _seen = begun(&mut stream)?;
    drop(stream);
    for number in 0..3 {
        assert_eq!(told(&format!("echo {number}"))?, format!("{number}\n"));
    }

    let ended = told("exit 3")?;
    assert!(ended.trim_end().ends_with("Restarting Bash"), "{ended:?}");
    assert_eq!(told("echo $GLOBAL; pwd")?, "kept\n/tmp\n");
    Ok(())
}
