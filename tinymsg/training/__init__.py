"""What a long training needs beyond train.py's loss and loop.

profiles      sizes and budgets
parallel      several processes, torch.compile
checkpoint    checkpoints, one training run per folder
estimate      time and memory, before it starts
validation    fixed pictures and noise, looked at while a model trains
runs          a whole training: logs, checkpoints, signals
"""
