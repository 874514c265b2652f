"""Fine-tuning in a notebook: run this file as it is, or cell by cell."""

# %% [markdown]
# # Fine-tune, evaluate and predict in a notebook
#
# Each `# %%` begins a cell, in VS Code, PyCharm, Spyder and Jupytext. All of it runs on a laptop in a minute, without a
# download: the images are scanned digits, and the network is small. With photos of your own, it is three lines:
#
# ```python
# import jaxnets
#
# run = jaxnets.fine_tune("photos", "resnet50", epochs=5)
# run.predict("new-photos")
# ```

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import jaxnets
from jaxnets.data.datasets import load_dataset

# %% [markdown]
# ## A folder of images
#
# Class folders below train/ and test/: here the digits 5 to 9, as PNG files.

# %%
folder = Path("photos")
digits = load_dataset("digits")
for part, images in (("train", digits.train), ("test", digits.test)):
    for index in range(len(images)):
        image, label = images[index]
        if label >= 5:
            file = folder / part / f"digit {label}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)

# %% [markdown]
# ## Train
#
# The arguments are the options of `jaxnets train`: `epochs`, `image_size`, `recipe`, `transfer`, `seed` and so on. The
# first run starts from random weights and learns all ten digits. `network_options` make ResNet-20 shorter, so that it
# compiles sooner.

# %%
first = jaxnets.train("resnet20_cifar", "digits", epochs=4, network_options={"stage_sizes": [1, 1, 1]})

# %% [markdown]
# The second run fine-tunes these weights on the folder. Its images keep the size and the preprocessing of the weights,
# and the network keeps its options. `weights="DEFAULT"`, the default, are those of ImageNet.

# %%
run = jaxnets.fine_tune(folder, "resnet20_cifar", weights=first.workdir, epochs=3)
print(run)

# %% [markdown]
# ## Evaluate
#
# The result is also in `result.json` in the folder of the run, beside the report, `report.html`.

# %%
accuracy = run.result["test_accuracy"]
print(f"{accuracy:.1%} of {run.result['test_images']} test images; files in {run.workdir}")
for row in run.result["test_per_class"]:
    print(f"{row['class']}: precision {row['precision']:.1%}, recall {row['recall']:.1%}, {row['support']} images")

# %% [markdown]
# ## Predict
#
# `predict` takes image files and folders. Each answer has the image and its most probable classes.

# %%
predictions = run.predict(folder / "test", top=2)
for prediction in predictions[:3]:
    print(prediction.image, [(guess.name, round(guess.probability, 3)) for guess in prediction.guesses])

# %% [markdown]
# ## Look at the mistakes
#
# The class of an image is the name of its folder; the surest mistakes come first.

# %%
wrong = [prediction for prediction in predictions if prediction.guesses[0].name != Path(prediction.image).parent.name]
wrong.sort(key=lambda prediction: -prediction.guesses[0].probability)
print(f"{len(wrong)} of {len(predictions)} are wrong")

figure, axes = plt.subplots(1, 6, figsize=(12, 2.6), layout="constrained")
for axis, prediction in zip(axes, wrong, strict=False):
    axis.imshow(Image.open(prediction.image), cmap="gray")
    guess = prediction.guesses[0]
    axis.set_title(f"{Path(prediction.image).parent.name}\nas {guess.name}, {guess.probability:.0%}", fontsize=9)
for axis in axes:
    axis.axis("off")

# %% [markdown]
# ## The network itself
#
# The classifier is a Flax module with its variables, its preprocessing and its class names.

# %%
model, variables, preprocess, categories = run.classifier
images = np.stack([preprocess(Image.open(prediction.image)) for prediction in predictions[:8]])  # [8, H, W, C]
logits = model.apply(variables, images, train=False)  # [8, classes]
print([categories[index] for index in logits.argmax(axis=1)])
