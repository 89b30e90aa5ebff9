"""Into how many parts a job is divided for the pool."""

from numba.extending import register_jitable

from fastrelu.kernels.driver import PARTS_PER_THREAD
from fastrelu.kernels.memory import larger, smaller
from fastrelu.kernels.pool import thread_limit


@register_jitable
def parts_of(pieces, work, grain):
    """Parts for `pieces` that cannot be divided and take `work` together; less than `grain` is not worth another thread."""
    return larger(1, smaller(pieces, smaller(work // grain, PARTS_PER_THREAD * thread_limit())))
