"""Learning a policy by trial: replay, double Q-learning and the environments."""
