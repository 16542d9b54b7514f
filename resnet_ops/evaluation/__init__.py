"""Evaluation of a trained network on labeled images: of a run, a file of weights or an exported file.

config               the options of `resnet-ops evaluate`
network              which network: its classes, its preprocessing, and how it is run
labeled_images       which images, their labels as the network numbers them, and what training has seen of them
classification       the network run on all of them
evaluation_metrics   the metrics made of that
evaluation_files     the folder that is written: JSON, Markdown, predictions.csv and a page
job                  the command, whole
"""
