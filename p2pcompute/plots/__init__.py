"""Records of what ran when and where, of real jobs and of simulated ones, and pictures of them."""
