"""Every tolerance of the tests, with its reason."""

EXACT_ROUNDING = 1e-12
"""The same formula in float64 in another order of operations."""

MEASURING = 1e-5
"""Float32 elements summed in chunks against float64, for 10^8 elements."""

FLOAT32_GRADIENTS = 1e-5
"""Float32 gradients that reach the same values by another way: another kernel, another order of processes."""

BFLOAT16_LOG = 5e-3
"""Trainer logs the norm of bfloat16 parameters in bfloat16, which has 8 bits."""

SPARSE_LOG_RMSE = 0.006
"""One norm in ten, the first among them, rebuilt the schedule of a published RoBERTa run to this."""

ONE_DECIMAL = 0.05
"""A constant that the literature gives with one decimal."""

NEAR_THE_BEST_PEAK = 1e-3
"""A step away from the minimum of the bound that is far above rounding and far below the minimum's width."""

REFINE_MILLION_SECONDS = 0.5
"""10^6 norms are refined in a quarter of a second on one quiet core; best of three on a shared one."""

COMMAND_SECONDS = 240
"""A command that starts several trainings of a single process takes a minute."""

STUB_SECONDS = 60
"""Shell commands that start stubs only take a second."""

LAUNCH_SECONDS = 90
"""A launch of two gloo processes takes 20 s on a busy machine, and sometimes never ends."""

EXIT_SECONDS = 15
"""A launch ends in 5 s after its ranks have written their last files, or hangs."""

BUILD_SECONDS = 120
"""Building a wheel or making an environment takes 5 to 10 seconds; a busy machine takes longer."""

OPTIMIZE_SECONDS = 10
"""The bound of 2,000 steps is minimised in half a second."""

RANK_SECONDS = 2
"""Forty schedules of 10^5 steps are ranked in half a second."""

CHECK_MILLION_SECONDS = 3
"""A million norms are judged in half a second, a few norms of a million updates likewise."""

READ_MILLION_SECONDS = 12
"""A million rows of a log are read in 4 s."""

QUICKSTART_SECONDS = 600
"""The quickstart with few updates takes a minute."""

SCALE_INVARIANCE = 1e-9
"""Norms times a constant, whose rounding a power of 2 and sums over the run enlarge."""

RECOVERED_LOSS = 0.01
"""A law fitted to one of its own curves with noise of 2e-4 predicts the last loss of other schedules, near 3.3, to this."""

MERGED_DECREASES = 2e-3
"""256 merged decreases instead of all, of a total of 1."""

LAW_BY_KNOTS = 1e-3
"""1,500 knots instead of every update, of a total of 1."""

FIT_LAW_SECONDS = 30
"""A law is fitted to 10^4 losses of 10^5 updates in 3 s; a busy machine takes longer."""

PREDICT_SECONDS = 2
"""Losses of 10^5 updates are predicted in a tenth of a second."""
