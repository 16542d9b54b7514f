"""Evaluation of a trained network on labeled images: of a run, a file of weights or an exported file.

The modules in the order of the work: evaluated_network (its classes, its preprocessing, how it is run), labeled_images
(which, with the network's labels, and what training has seen of them), classification, evaluation_metrics,
label_issues, evaluation_files (the folder that is written). job is all of it.
"""
