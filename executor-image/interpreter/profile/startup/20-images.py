"""Pillow's images: `show` displays one here, and `save` to a path displays it too (code-interpreter 7).

Pillow is changed when the user imports it, not before.
"""


def _sandyard_images():
    import importlib.util
    import sys

    def change(image_module):
        from IPython.display import display

        image = image_module.Image
        save = image.save

        def show(self, title=None):
            display(self)

        def save_and_display(self, fp, *args, **kwargs):
            result = save(self, fp, *args, **kwargs)
            if isinstance(fp, str):
                display(self)
            return result

        image.show = show
        image.save = save_and_display

    class Finder:
        """Finds `PIL.Image` as all others do, and changes it once it is loaded."""

        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name != "PIL.Image":
                return None
            sys.meta_path.remove(cls)
            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                return spec
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                change(module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder)


def _sandyard_base64():
    """Python's own takes five times as long, which is most of the time of a large picture."""
    import IPython.core.display
    import IPython.core.pylabtools
    import pybase64

    def b2a_base64(data, *, newline=True):
        encoded = pybase64.b64encode(data)
        return encoded + b"\n" if newline else encoded

    for module in (IPython.core.display, IPython.core.pylabtools):
        module.b2a_base64 = b2a_base64


_sandyard_images()
_sandyard_base64()
del _sandyard_images, _sandyard_base64
