"""tinymsg: multiscale structure guided diffusion for image deblurring (Ren et al., ICCV 2023), small but complete."""

__version__ = "0.2.0"


def __getattr__(name: str):
    """tinymsg.pretrained, when it is asked for: `import tinymsg` alone loads no torch."""
    if name == "pretrained":
        from .model import pretrained

        return pretrained
    raise AttributeError(f"module 'tinymsg' has no attribute {name!r}")
