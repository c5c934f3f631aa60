"""The demo network, its shipped checkpoint, pretraining and fp32 fine-tuning."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from torch import nn

from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.train import datasets, finetune, models, pretrain

torch.set_num_threads(1)


def stripes(count: int, seed: int) -> datasets.Dataset:
    """Two classes that a small network tells apart at once: horizontal and vertical stripes plus noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    wave = (np.arange(32) // 4 % 2 * 180).astype(np.uint8)
    images = np.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    noise = rng.integers(0, 60, images.shape)
    return datasets.Dataset("stripes", (images + noise).astype(np.uint8)[..., None], labels, ("h", "v"))


def test_parameters_are_as_documented():
    folded = finetune.fold_norms(models.MobileNet())
    assert sum(p.numel() for p in folded.parameters()) == 56_474
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        macs += module.weight.numel() * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    for module in folded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    folded(torch.zeros(1, 1, 32, 32))
    assert macs == 862_528 + 640  # convolutions, by hand from BLOCKS; head


def test_folding_keeps_the_function():
    model = models.load_pretrained()
    x = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(finetune.fold_norms(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_shipped_checkpoint_is_small_and_plain():
    path = resources.files("tinytrain_lite") / "data" / models.CHECKPOINT
    assert len(path.read_bytes()) < 250_000
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype == np.float16 for name in arrays.files)


def test_shipped_checkpoint_knows_fashion():
    try:
        test = datasets.pad(datasets.load("fashion-mnist", "test"), models.IMAGE_SIZE)
    except datasets.DatasetError as error:
        pytest.skip(str(error))
    assert pretrain.accuracy(models.load_pretrained(), test.take(np.arange(2000))) > 0.89


def test_checkpoint_survives_writing_and_reading(tmp_path, monkeypatch):
    model = models.MobileNet().eval()
    pretrain.save_checkpoint(model, tmp_path / "data" / models.CHECKPOINT)
    monkeypatch.setattr(models.resources, "files", lambda package: tmp_path)
    loaded = models.load_pretrained()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    np.savez(tmp_path / "data" / models.CHECKPOINT, other=np.zeros(1))
    with pytest.raises(TinyTrainError, match="does not fit MobileNet: stem.weight"):
        models.load_pretrained()
    (tmp_path / "data" / models.CHECKPOINT).unlink()
    with pytest.raises(TinyTrainError, match="python -m tinytrain_lite.train.pretrain"):
        models.load_pretrained()


def test_pretraining_learns_and_is_seeded():
    data = stripes(256, seed=0)
    first, second = (pretrain.pretrain(data, epochs=2, seed=1, batch=32, peak_rate=0.05) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert pretrain.accuracy(first, stripes(200, seed=9)) > 0.9


def test_accuracy_by_hand():
    class First(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(x[:, 0, 0, 0].mul(255).round().long(), 3).float()

    images = np.zeros((4, 1, 1, 1), np.uint8)
    images[:, 0, 0, 0] = [0, 1, 2, 2]
    data = datasets.Dataset("d", images, np.array([0, 1, 1, 2]), ("a", "b", "c"))
    assert pretrain.accuracy(First(), data, batch=3) == 0.75


@pytest.mark.parametrize(
    # by hand: last 64*10+10; bias + 1760 convolution biases; sparse + 1,336 biases of blocks 4..7 and
    # 3 * 24*144 + 40*160 weights of their first pointwise convolutions
    ("scheme", "count"),
    [("last", 650), ("bias", 2_410), ("sparse", 650 + 1_336 + 16_768), ("full", 56_474)],
)
def test_schemes_learn_what_they_say_and_nothing_else(scheme, count):
    model = models.load_pretrained()
    data = stripes(16, seed=0)
    data = datasets.Dataset("stripes", data.images, data.labels, tuple("0123456789"))
    before = dict(models.reset_head(finetune.fold_norms(model), 10).named_parameters())
    after = finetune.finetune(model, data, scheme, rate=0.01, epochs=1)
    names = finetune.learned(after, scheme)
    assert sum(dict(after.named_parameters())[name].numel() for name in names) == count
    for name, parameter in after.named_parameters():
        if name not in names:
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(after.head.weight, before["head.weight"])


def test_unknown_scheme_is_refused():
    with pytest.raises(TinyTrainError, match="'all'.*last, bias, sparse, full"):
        finetune.learned(models.MobileNet(), "all")
