"""tinymsg: multiscale structure guided diffusion for image deblurring (Ren et al., ICCV 2023), small but complete."""

__version__ = "0.2.0"
