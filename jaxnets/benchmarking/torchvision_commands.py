"""The peer: predicts, embeds and evaluates photos with torchvision, as a script of a careful user does.

Run it by its path, without jaxnets: python torchvision_commands.py TASK ARCH WEIGHTS PHOTOS CORES. The task "save"
writes a network with new weights and a class for each folder of PHOTOS to WEIGHTS.
"""

import sys

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

_BATCH = 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TOP = 5


def main(task: str, arch: str, weights: str, photos: str, cores: int) -> None:
    """Runs a task, and prints the classes, the sum of the features or the accuracy."""
    torch.set_num_threads(cores)
    images = ImageFolder(photos, Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize(_MEAN, _STD)]))
    model = torchvision.models.get_model(arch, num_classes=len(images.classes))
    if task == "save":
        torch.save(model.state_dict(), weights)
        return
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = model.eval().to(memory_format=torch.channels_last)
    if task == "embed":  # the inputs of the classifier layer
        if arch == "alexnet":
            model.classifier[-1] = torch.nn.Identity()
        else:
            model.fc = torch.nn.Identity()
    right, outputs = 0, []
    with torch.inference_mode():
        for batch, labels in DataLoader(images, _BATCH, num_workers=cores):
            outputs.append(model(batch.to(memory_format=torch.channels_last)))
            right += int((outputs[-1].argmax(1) == labels).sum())
    results = torch.cat(outputs)
    match task:
        case "predict":
            print(results.topk(min(_TOP, results.shape[1])).indices.tolist())
        case "embed":
            print(float(results.sum()))
        case _:
            print(right / len(images))


if __name__ == "__main__":
    task, arch, weights, photos, cores = sys.argv[1:]
    main(task, arch, weights, photos, int(cores))
