"""Trains one recipe; knows nothing of sweeps."""

import os

# torch's OpenMP reads this when torch is imported. Its threads otherwise spin while they wait for each other, so that a
# training beside another busy process takes up to thirty times as long. GOMP_SPINCOUNT, if the user has set it, wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
