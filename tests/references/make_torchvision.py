"""Writes torchvision.npz: torchvision's outputs and gradients in float64 for the inputs of recipe.py.

Needs torch and torchvision (made with 2.14.1 and 0.29.1):  python -m tests.references.make_torchvision
"""

from pathlib import Path

import numpy as np
import torch
import torchvision

from tests.references import recipe


def build(arch: str, classes: int, transform_input: bool = False) -> torch.nn.Module:
    options = {"init_weights": False, "transform_input": transform_input} if arch == "googlenet" else {}
    model = getattr(torchvision.models, arch)(weights=None, num_classes=classes, **options).double()
    state = recipe.random_state_dict((name, tuple(t.shape)) for name, t in model.state_dict().items())
    model.load_state_dict({name: torch.from_numpy(t) for name, t in state.items()}, strict=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def images_of(pixels: int, count: int) -> torch.Tensor:
    return torch.from_numpy(recipe.random_images(pixels, count)).permute(0, 3, 1, 2).contiguous()


def evaluation_logits(arch: str) -> dict[str, np.ndarray]:
    results = {}
    for pixels, count, classes in recipe.EVALUATION_CASES:
        model = build(arch, classes, transform_input=pixels == recipe.TRANSFORMED_PIXELS).eval()
        with torch.no_grad():
            logits = model(images_of(pixels, count)).numpy()
        # The logits must depend on the image, or errors would go unnoticed.
        assert count == 1 or np.abs(logits[0] - logits[1]).max() > 0.02 * np.abs(logits).max(), arch
        results[f"{arch}/logits_{pixels}"] = logits
    return results


def training(arch: str) -> dict[str, np.ndarray]:
    pixels, count, classes = recipe.TRAINING_CASE
    model = build(arch, classes).train()
    images, labels = images_of(pixels, count), torch.from_numpy(recipe.labels(count, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.LEARNING_RATE, momentum=recipe.MOMENTUM)
    results = {}
    for step in range(recipe.STEPS):
        outputs = model(images)
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        for head in aux:
            loss = loss + recipe.AUX_WEIGHT * torch.nn.functional.cross_entropy(head, labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            results[f"{arch}/train_logits"] = logits.detach().numpy()
            # torchvision returns (logits, aux_logits2, aux_logits1).
            for name, head in zip(("aux2", "aux1"), aux, strict=False):
                results[f"{arch}/{name}"] = head.detach().numpy()
            for name, parameter in model.named_parameters():
                results[f"{arch}/gradient/{name}"] = recipe.fingerprint(name, parameter.grad.numpy())
            for name, buffer in model.named_buffers():
                if "running" in name:
                    results[f"{arch}/statistics/{name}"] = recipe.fingerprint(name, buffer.numpy())
        optimizer.step()
    for name, parameter in model.named_parameters():
        results[f"{arch}/trained/{name}"] = recipe.fingerprint(name, parameter.detach().numpy())
    results[f"{arch}/last_loss"] = loss.detach().numpy()
    return results


def main() -> None:
    results = {}
    for arch in recipe.TORCHVISION_MODELS:
        results |= evaluation_logits(arch)
        print(arch, [float(np.abs(results[f"{arch}/logits_{case[0]}"]).max()) for case in recipe.EVALUATION_CASES])
    for arch in recipe.TRAINED_MODELS:
        results |= training(arch)
        print(arch, "last loss", results[f"{arch}/last_loss"])
    np.savez_compressed(Path(__file__).with_name("torchvision.npz"), **results)


if __name__ == "__main__":
    main()
