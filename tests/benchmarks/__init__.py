"""lipprof beside its peers, on the same problems in the same process: see README.md.

One thread for everybody, BLAS under scipy included; it reads the variables when it is loaded.
"""

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler's own messages
