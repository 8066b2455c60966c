"""Names of Arm CPUs: their kernel tells the numbers of `MIDR_EL1` only, an implementer and a part.

The numbers are those of Linux (arch/arm64/include/asm/cputype.h) and of util-linux (sys-utils/lscpu-arm.c).
"""

ARM, NVIDIA = 0x41, 0x4E
PARTS = {
    (ARM, 0xD03): "Arm Cortex-A53",
    (ARM, 0xD04): "Arm Cortex-A35",
    (ARM, 0xD05): "Arm Cortex-A55",
    (ARM, 0xD07): "Arm Cortex-A57",
    (ARM, 0xD08): "Arm Cortex-A72",
    (ARM, 0xD09): "Arm Cortex-A73",
    (ARM, 0xD0A): "Arm Cortex-A75",
    (ARM, 0xD0B): "Arm Cortex-A76",
    (ARM, 0xD0C): "Arm Neoverse-N1",
    (ARM, 0xD0D): "Arm Cortex-A77",
    (ARM, 0xD0E): "Arm Cortex-A76AE",
    (ARM, 0xD40): "Arm Neoverse-V1",
    (ARM, 0xD41): "Arm Cortex-A78",
    (ARM, 0xD42): "Arm Cortex-A78AE",
    (ARM, 0xD44): "Arm Cortex-X1",
    (ARM, 0xD46): "Arm Cortex-A510",
    (ARM, 0xD47): "Arm Cortex-A710",
    (ARM, 0xD48): "Arm Cortex-X2",
    (ARM, 0xD49): "Arm Neoverse-N2",
    (ARM, 0xD4A): "Arm Neoverse-E1",
    (ARM, 0xD4B): "Arm Cortex-A78C",
    (ARM, 0xD4D): "Arm Cortex-A715",
    (ARM, 0xD4E): "Arm Cortex-X3",
    (ARM, 0xD4F): "Arm Neoverse-V2",
    (ARM, 0xD80): "Arm Cortex-A520",
    (ARM, 0xD81): "Arm Cortex-A720",
    (ARM, 0xD82): "Arm Cortex-X4",
    (ARM, 0xD83): "Arm Neoverse-V3AE",
    (ARM, 0xD84): "Arm Neoverse-V3",
    (ARM, 0xD85): "Arm Cortex-X925",
    (ARM, 0xD87): "Arm Cortex-A725",
    (ARM, 0xD8E): "Arm Neoverse-N3",
    (NVIDIA, 0x003): "NVIDIA Denver 2",
    (NVIDIA, 0x004): "NVIDIA Carmel",
}


def core_name(implementer: str, part: str) -> str:
    """Name a core.

    Args:
        implementer: as the kernel writes it, such as "0x41".
        part: likewise, such as "0xd0b".

    Returns:
        "Arm Cortex-A76", or the two numbers where they are of no core that is known here.
    """
    try:
        known = PARTS.get((int(implementer, 16), int(part, 16)))
    except ValueError:
        known = None
    return known or f"implementer {implementer} part {part}"
