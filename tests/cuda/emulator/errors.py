"""What the emulator finds wrong. Each kind has a class of its own, so that a test can name the fault that it expects."""


class EmulationError(Exception):
    """A kernel did something that PTX does not define, or that this emulator does not know."""

    def note(self, where: str) -> None:
        """Say where it happened, in a line of its own."""
        self.args = (f"{self.args[0]}\n  {where}", *self.args[1:])


class UnknownInstruction(EmulationError):
    """An instruction, operand or directive that the emulator does not know: it is never skipped."""


class OutOfBounds(EmulationError):
    """An access outside everything that is registered (global), allocated (shared) or declared (local)."""


class Misaligned(EmulationError):
    """An address that is no multiple of the access's size."""


class Race(EmulationError):
    """Two threads touch the same memory, one of them writes, and nothing orders the two."""


class Diverged(EmulationError):
    """An instruction for a whole warp, or a barrier for a whole block, is not reached by all of its threads."""


class Deadlock(EmulationError):
    """No thread can go on."""
