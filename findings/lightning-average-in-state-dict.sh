#!/usr/bin/env bash
# lightning 2.6.6: with EMAWeightAveraging, a checkpoint's "state_dict" has other weights than the module's state_dict().
#
# A good guess: checkpoint["state_dict"] is module.state_dict() at the time of saving, as without the callback, and an
#   average has a key of its own, as in the checkpoints of torchvision's references and timm.
# Seen: "state_dict" holds the moving average, and the trained weights are under "current_model_state". The names are the
#   same in both, so nothing shows which one a reader has loaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check lightning==2.6.6 torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return -self.weight.sum()  # each step adds 1

    def on_train_epoch_end(self):
        self.trained = self.state_dict()["weight"].item()
        self.trainer.save_checkpoint("a.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


module = Module()
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
callback = EMAWeightAveraging(decay=0.5)
trainer = lightning.Trainer(accelerator="cpu", max_steps=4, callbacks=[callback], **options)
trainer.fit(module, torch.utils.data.DataLoader(range(4)))
checkpoint = torch.load("a.ckpt", weights_only=False)
trained = module.trained
saved, current = (checkpoint[key]["weight"].item() for key in ("state_dict", "current_model_state"))
print(f"lightning {lightning.__version__}: trained {trained}, state_dict {saved}, current_model_state {current}")
assert trained == current == 4 and saved < 4, "the checkpoint now has the trained weights as state_dict"
PYTHON
