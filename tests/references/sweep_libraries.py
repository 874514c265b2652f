"""The files of the sweep that timm, Lightning and accelerate write."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.references.sweep_parts import CLASSES, ResNet8, Sweep, namespace


def by_timm(sweep: Sweep, plain: ResNet8, average: ResNet8) -> None:
    """Checkpoints of timm's training script and of its exports."""
    import timm.utils
    from timm.models import save_for_hf

    def checkpoint(name: str, with_average: bool) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            ema = timm.utils.ModelEmaV3(plain) if with_average else None
            if ema is not None:
                ema.module.load_state_dict(average.state_dict())
            optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
            with tempfile.TemporaryDirectory() as folder:
                saver = timm.utils.CheckpointSaver(
                    plain, optimizer, namespace(name), ema, checkpoint_dir=folder, recovery_dir=folder
                )
                saver.save_checkpoint(3, 0.5)
                (Path(folder) / "last.pth.tar").rename(path)

        return write

    sweep.read("timm/last.pth.tar", checkpoint("resnet8", False), plain)
    sweep.read("timm/ema.pth.tar", checkpoint("resnet8", True), average)
    sweep.read("timm/ema_key.pth.tar", checkpoint("resnet8", True), plain, "state_dict")
    sweep.refuse("timm/resnetaa50.pth.tar", checkpoint("resnetaa50", True), "resnetaa50", "something else")

    def hub(architecture: str, file: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            plain.pretrained_cfg = {
                "architecture": architecture,
                "num_classes": CLASSES,
                "input_size": (3, 16, 16),
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
                "interpolation": "bicubic",
                "crop_pct": 1.0,
            }
            plain.num_classes, plain.num_features = CLASSES, 64
            save_for_hf(plain, path.parent, safe_serialization="both")
            assert path.name == file

        return write

    for architecture in ("resnet8", "resnetaa50"):
        for file in ("model.safetensors", "pytorch_model.bin"):
            name = f"timm/{architecture}/{file}"
            if architecture == "resnet8":
                sweep.read(name, hub(architecture, file), plain)
            else:
                sweep.refuse(name, hub(architecture, file), "resnetaa50", "something else")


def by_lightning(sweep: Sweep, plain: ResNet8, average: ResNet8) -> None:
    """Checkpoints of Lightning's trainer."""
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Plain(lightning.LightningModule):
        """A module with the network under `attribute`."""

        def __init__(self, attribute: str, network: nn.Module, arch: str = "resnet8") -> None:
            super().__init__()
            self.save_hyperparameters({"arch": arch, "lr": 0.5})
            setattr(self, attribute, network)
            self.attribute = attribute

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return getattr(self, self.attribute)(batch[0]).sum() * 0

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def trained(attribute: str, network: nn.Module, path: Path, callbacks: list[Any], **more: Any) -> None:
        module = Plain(attribute, copy.deepcopy(network), **more)
        module.eval()
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1, 3, 16, 16)))
        with tempfile.TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                accelerator="cpu",
                default_root_dir=folder,
                max_steps=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=callbacks,
            )
            trainer.fit(module, data)
            trainer.save_checkpoint(path)

    for attribute in ("model", "net", "network", "backbone"):
        sweep.read(f"lightning/{attribute}.ckpt", lambda path, a=attribute: trained(a, plain, path, []), plain)
    sweep.refuse(
        "lightning/says_resnetaa50.ckpt",
        lambda path: trained("model", plain, path, [], arch="resnetaa50"),
        "resnetaa50",
    )

    def with_average(path: Path) -> None:
        class Averaging(EMAWeightAveraging):
            """Takes other weights for the average, so that both differ."""

            def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
                self._average_model.module.model.load_state_dict(average.state_dict())
                super().on_save_checkpoint(trainer, module, checkpoint)

        trained("model", plain, path, [Averaging(decay=0.5)])

    sweep.read("lightning/ema.ckpt", with_average, average)
    sweep.read("lightning/ema_key.ckpt", with_average, plain, "current_model_state")


def by_accelerate(sweep: Sweep, plain: ResNet8) -> None:
    """Models and states of accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def model(path: Path) -> None:
        accelerator.save_model(plain, path.parent, safe_serialization=path.suffix == ".safetensors")

    sweep.read("accelerate/safe/model.safetensors", model, plain)
    sweep.read("accelerate/torch/pytorch_model.bin", model, plain)
    sweep.read("accelerate/saved.pth", lambda path: accelerator.save(plain.state_dict(), path), plain)
