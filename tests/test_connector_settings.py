"""Settings of connectors that are none are refused, with what they must be."""

import pytest

from modeling_speechllm.configuration_connectors import connector_config

QFORMER = {"type": "window_qformer", "gate": "conv"}


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({**QFORMER, "languages": "de,fr"}, "languages='de,fr' must be a list of different names"),
        ({**QFORMER, "languages": ["en", "en"]}, "must be a list of different names"),
        ({**QFORMER, "languages": [1, 2]}, "must be a list of different names"),
        ({"type": "conformer_ctc", "languages": "english"}, "languages='english' must be a list"),
        ({"type": "conformer_ctc", "languages": -1}, "languages=-1 must be a list"),
        ({"type": "conformer_ctc", "languages": True}, "languages=True must be a list"),
        ({"type": "conformer_ctc", "blocks": -1}, "blocks=-1 must be a whole number of 1 or more"),
        ({"type": "ctc_compress", "blocks": 0}, "blocks=0 must be"),
        ({"type": "whisper_qformer", "decoder_layers": -2}, "decoder_layers=-2 must be"),
        ({"type": "window_qformer", "qformer_layers": 0}, "qformer_layers=0 must be"),
        ({"type": "conv", "bottleneck_size": 0}, "bottleneck_size=0 must be"),
        ({"type": "stack_mlp", "hidden_size": 1.5}, "hidden_size=1.5 must be"),
    ],
)
def test_a_setting_that_is_none_is_refused(settings, finding):
    with pytest.raises(ValueError, match=finding.replace("[", "\\[")):
        connector_config(settings)


@pytest.mark.parametrize("languages", [None, ["en"], ["en", "de"]])
def test_lists_of_names_are_taken(languages):
    settings = QFORMER | {"languages": languages} if languages else {"type": "window_qformer"}
    assert connector_config(settings).languages == languages
    assert connector_config({"type": "conformer_ctc", "languages": languages or 3}).language_count == len(
        languages or [1, 2, 3]
    )
