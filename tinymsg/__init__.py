"""tinymsg: multiscale structure guided diffusion for image deblurring (Ren et al., ICCV 2023), small and whole."""

__version__ = "0.1.0"
