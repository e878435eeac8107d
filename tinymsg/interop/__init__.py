"""Models, pairs and metrics in the forms that other libraries take.

adapters  a denoiser for diffusers' schedulers and for deepinv, pairs as a dataset of torch
metrics   a metric of evaluate.py as one of torchmetrics
"""
