"""Results that programs can read (code-interpreter 7): tables and charts as data, lists and dictionaries as JSON.

Nothing here imports pandas or matplotlib before the user does.
"""


def _sandyard_results():
    import datetime
    import math

    from IPython import get_ipython
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    formatter = get_ipython().display_formatter

    def as_json(value):
        """The value as JSON has it: numbers that are none become null, keys texts."""
        import orjson

        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        return orjson.loads(orjson.dumps(value, option=options))

    def json_or_nothing(value):
        try:
            return as_json(value)
        except Exception:
            # Not everything in a list can be written as JSON; its text is still there.
            return None

    class DataFormatter(BaseFormatter):
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")
        _return_type = dict

    class ChartFormatter(BaseFormatter):
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")
        _return_type = dict

        def pop(self, typ, default=None):
            # Matplotlib's support in IPython takes figures out of all formatters, to put its own in.
            return default

    def cell(value):
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if type(value).__name__ == "NAType":
            # pandas' value for "nothing" of any type.
            return None
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
            # pandas' value for "no time" is one of these, and equal to nothing.
            return value.isoformat() if value == value else None
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            return cell(value.item())
        try:
            return as_json(value)
        except Exception:
            return str(value)

    def frame_to_data(frame):
        columns = enumerate(frame.columns)
        return {str(name): [cell(v) for v in frame.iloc[:, at].tolist()] for at, name in columns}

    def figure_to_chart(figure):
        try:
            from e2b_charts import chart_figure_to_dict

            chart = chart_figure_to_dict(figure)
            # Enumerations and models to their values.
            return as_json(chart) or {}
        except Exception:
            return {}

    data = DataFormatter(parent=formatter)
    data.for_type_by_name("pandas.core.frame", "DataFrame", frame_to_data)
    chart = ChartFormatter(parent=formatter)
    chart.for_type_by_name("matplotlib.figure", "Figure", figure_to_chart)
    formatter.formatters["e2b/data"] = data
    formatter.formatters["e2b/chart"] = chart
    as_object = formatter.formatters["application/json"]
    as_object.for_type(list, json_or_nothing)
    as_object.for_type(dict, json_or_nothing)


_sandyard_results()
del _sandyard_results
