import pytest

from deploy.arm import PARTS, core_name


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xd0b", "Arm Cortex-A76"),
        ("0x41", "0xd4f", "Arm Neoverse-V2"),
        ("0x4e", "0x004", "NVIDIA Carmel"),
        ("0x41", "0x004", "implementer 0x41 part 0x004"),
        ("0x99", "0xd0b", "implementer 0x99 part 0xd0b"),
        ("arm", "next", "implementer arm part next"),
    ],
)
def test_a_core_is_named_by_both_its_numbers_and_an_unknown_one_keeps_them(implementer, part, name):
    assert core_name(implementer, part) == name


def test_no_two_cores_have_one_name():
    assert len({*PARTS.values()}) == len(PARTS)
