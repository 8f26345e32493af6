"""What code in a jail may take. Held by rlimits, sized file systems, a cgroup where one can be made, and a watch over what is left."""

from __future__ import annotations

from dataclasses import dataclass

from herd.base.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class JailLimits:
    """Limits of one jail, all of its processes together unless it says otherwise."""

    memory_bytes: int = 1024 * MIB
    """Resident memory. Address space, which one process sees as MemoryError, may be `address_space_bytes`."""
    address_space_bytes: int = 3072 * MIB
    disk_bytes: int = 256 * MIB
    """The working folder; the same again for temporary files."""
    file_bytes: int = 128 * MIB
    """One file."""
    processes: int = 64
    """Processes and threads."""
    descriptors: int = 256
    """Open files of one process."""
    cpu_s: int = 600
    """Processor seconds of one process in all its life."""
    run_s: float = 30.0
    """Wall-clock seconds of one run of code."""
    output_bytes: int = 1 * MIB
    """Of each of stdout and stderr that are kept of one run; what is over is thrown away, and said."""
    attachment_bytes: int = 16 * MIB
    """Pictures and files that one run gives back, together."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"the jail's {name} is {value}", hint="every limit of a jail is above 0")
        if self.address_space_bytes < self.memory_bytes:
            raise ConfigError(
                f"address_space_bytes {self.address_space_bytes} is below memory_bytes {self.memory_bytes}",
                hint="raise the one or lower the other",
            )
