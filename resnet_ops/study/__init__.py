"""Studies: the experiments of He et al. 2015, as many trainings whose errors and layers are compared."""
