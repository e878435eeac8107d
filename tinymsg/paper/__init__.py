"""The paper's evaluation: four test sets, whole pictures, six metrics, one table beside the published rows.

fid          FID and KID, of whole sets of pictures
niqe         a metric without a sharp original
align        scores after alignment: RealBlur's protocol, shifts, many truths
published    what others published, with its source
protocol     the test sets, restored and scored picture by picture, on a ledger that survives a kill
choose       the sampler's setting, on pictures that are in no test set
report       the table
"""
