"""The closure of the wheels: what is missing is said, and what does not fit too."""

from benchmarks.gpu_wheels import lacks, metadata, read_present

CARRIED = {
    "trl": ("1.12.0", ["transformers>=4.56", "rich>=14; extra == 'x'", "tomli; python_version < '3.11'"]),
    "transformers": ("5.23.0", ["numpy>=1.17", "tokenizers<0.24,>=0.23.1"]),
}


def test_all_that_is_needed_is_among_the_wheels_or_there():
    present = read_present("NumPy==2.5.2\ntokenizers==0.23.2\n")
    assert lacks(CARRIED, present) == (["numpy>=1.17", "tokenizers<0.24,>=0.23.1"], [])


def test_what_is_nowhere_or_does_not_fit_is_named():
    _, faults = lacks(CARRIED, read_present("tokenizers==0.22.0"))
    assert len(faults) == 2
    assert "transformers needs numpy>=1.17, which is neither" in faults[0]
    assert "tokenizers" in faults[1] and "0.22.0" in faults[1]


def test_a_local_version_and_a_name_without_one_fit():
    assert not lacks({"a": ("1", ["torch<2.14,>=2.9"])}, read_present("torch==2.11.0+cu130"))[1]
    assert not lacks({"a": ("1", ["torch<2.14,>=2.9"])}, read_present("torch"))[1]


def test_tuner_is_among_those_that_need():
    _, faults = lacks(metadata([]), {})
    assert any(fault.startswith("tuner needs torch") for fault in faults)
