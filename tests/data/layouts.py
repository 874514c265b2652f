"""Folder layouts of public image data sets, as their publishers document them and as their archives unpack.

Only the names are real; the images are tiny, and a layout has a few classes of each data set. An answer (classes,
folder of the training images, folder of the test images, or the reason to refuse) follows from the description of the
publisher, not from the code under test.
"""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# Reasons to refuse, as words of the message.
PARTS = "have the same class folders"
LOOSE = "not in class folders"
NO_CLASSES = "has no class folders"
NUMBERED = "are numbered parts"
OWN_PARTS = "for training and testing of its own"
ONE_CLASS = "has only one class"
ONE_IMAGE = "has only one image"
INITIALS = "are initials of classes"
SAME_INSIDE = "have the same folders inside"
NOT_A_SPLIT = "has images but is not a split"
TWO = "has both"
OTHER_CLASSES = "expected the same class folders"
NO_TRAIN = "but no train/"


@dataclass(frozen=True)
class PublicLayout:
    """A layout and its right answer.

    `folders` gives the number of images of each folder; "{a,b}" stands for one folder each. `val` and `test` are None
    if the data set has no labelled images of its own for them. `warns` are words of the warnings; None means that there
    are none.
    """

    name: str
    folders: dict[str, int]
    classes: str = ""
    train: str = "."
    test: str | None = None
    refused: str = ""
    warns: str | None = None
    files: tuple[str, ...] = ()
    val: str | None = None


def expanded(pattern: str) -> Iterator[str]:
    """The folders that a pattern stands for."""
    if match := re.search(r"\{([^{}]*)\}", pattern):
        for name in match[1].split(","):
            yield from expanded(pattern[: match.start()] + name + pattern[match.end() :])
    else:
        yield pattern


def write(layout: PublicLayout, root: Path) -> None:
    """Writes a layout; all images are links to one file."""
    root.mkdir(parents=True)
    image = root.with_suffix(".image")
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(content, "PNG")
    image.write_bytes(content.getvalue())
    for pattern, count in layout.folders.items():
        for folder in expanded(pattern):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                os.link(image, root / folder / f"{number:05}.jpg")
    for name in layout.files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("?")


INTEL = "{buildings,forest,glacier,mountain,sea,street}"
TUMORS = "{glioma,meningioma,notumor,pituitary}"
CIFAR10 = "{airplane,automobile,bird,cat}"
FLOWERS = "{daisy,dandelion,roses,sunflowers,tulips}"
DIGITS = "{0,1,2,3,4,5,6,7,8,9}"
OFFICE = "{back_pack,bike,bookcase}"
PLANTS = "{Apple___Apple_scab,Apple___healthy,Corn_(maize)___healthy}"
SYNSETS = "{n01440764,n02102040,n02979186}"
DOGS = "{n02085620-Chihuahua,n02085782-Japanese_spaniel}"
BIRDS = "{001.Black_footed_Albatross,002.Laysan_Albatross}"
FRUITS = "{Apple Braeburn 1,Banana 1,Cherry 1}"
RUBBISH = "{cardboard,glass,metal,paper,plastic,trash}"
MALARIA = "{Parasitized,Uninfected}"
GTSRB = "{00000,00001,00002}"
LETTERS = "{A,B,C,del,nothing,space}"
RPS = "{paper,rock,scissors}"
HORSES = "{horses,humans}"
SPORTS = "{air hockey,archery,bmx}"
DEMENTIA = "{MildDemented,ModerateDemented,NonDemented,VeryMildDemented}"
CELLS = "{EOSINOPHIL,LYMPHOCYTE,MONOCYTE,NEUTROPHIL}"

LAYOUTS = [
    # Training and test folders with the same classes.
    PublicLayout(
        "Intel image classification",
        {f"seg_train/seg_train/{INTEL}": 5, f"seg_test/seg_test/{INTEL}": 2, "seg_pred/seg_pred": 6},
        INTEL,
        "seg_train/seg_train",
        "seg_test/seg_test",
        warns="seg_pred/",
    ),
    PublicLayout("Brain tumor MRI", {f"Training/{TUMORS}": 5, f"Testing/{TUMORS}": 2}, TUMORS, "Training", "Testing"),
    PublicLayout(
        "Cat and dog (SuperDataScience)",
        {"training_set/training_set/{cats,dogs}": 5, "test_set/test_set/{cats,dogs}": 2},
        "{cats,dogs}",
        "training_set/training_set",
        "test_set/test_set",
    ),
    PublicLayout(
        "Cats, dogs and a single prediction",
        {"dataset/training_set/{cats,dogs}": 5, "dataset/test_set/{cats,dogs}": 2, "dataset/single_prediction": 2},
        "{cats,dogs}",
        "dataset/training_set",
        "dataset/test_set",
        warns="single_prediction/",
    ),
    PublicLayout(
        "Chest X-ray pneumonia",
        {
            "chest_xray/train/{NORMAL,PNEUMONIA}": 6,
            "chest_xray/test/{NORMAL,PNEUMONIA}": 3,
            "chest_xray/val/{NORMAL,PNEUMONIA}": 1,
        },
        "{NORMAL,PNEUMONIA}",
        "chest_xray/train",
        "chest_xray/test",
        val="chest_xray/val",
        files=("chest_xray/__MACOSX/._train", "__MACOSX/chest_xray/train/NORMAL/._00000.jpg"),
    ),
    PublicLayout(
        "Chest X-ray pneumonia with its nested copy",
        {
            f"{part}/{{NORMAL,PNEUMONIA}}": count
            for copy in ("", "chest_xray/")
            for part, count in ((f"{copy}train", 6), (f"{copy}test", 3), (f"{copy}val", 1))
        },
        "{NORMAL,PNEUMONIA}",
        "train",
        "test",
        val="val",
        warns="chest_xray/",
    ),
    PublicLayout(
        "FER-2013",
        {"train/{angry,disgust,fear,happy}": 5, "test/{angry,disgust,fear,happy}": 2},
        "{angry,disgust,fear,happy}",
        "train",
        "test",
    ),
    PublicLayout(
        "MNIST as PNG",
        {f"mnist_png/training/{DIGITS}": 4, f"mnist_png/testing/{DIGITS}": 1},
        DIGITS,
        "mnist_png/training",
        "mnist_png/testing",
    ),
    PublicLayout(
        "CIFAR-10 of fast.ai",
        {f"cifar10/train/{CIFAR10}": 5, f"cifar10/test/{CIFAR10}": 1},
        CIFAR10,
        "cifar10/train",
        "cifar10/test",
        files=("cifar10/labels.txt",),
    ),
    PublicLayout(
        "CINIC-10",
        {f"{part}/{CIFAR10}": 3 for part in ("train", "valid", "test")},
        CIFAR10,
        "train",
        "test",
        val="valid",
        files=("README.md", "imagenet-contributors.csv", "synsets-to-cifar-10-classes.txt"),
    ),
    PublicLayout(
        "Hymenoptera of PyTorch's tutorial",
        {"hymenoptera_data/train/{ants,bees}": 6, "hymenoptera_data/val/{ants,bees}": 3},
        "{ants,bees}",
        "hymenoptera_data/train",
        val="hymenoptera_data/val",
    ),
    PublicLayout(
        "Imagenette",
        {f"imagenette2-160/train/{SYNSETS}": 5, f"imagenette2-160/val/{SYNSETS}": 2},
        SYNSETS,
        "imagenette2-160/train",
        val="imagenette2-160/val",
        files=("imagenette2-160/noisy_imagenette.csv",),
    ),
    PublicLayout(
        "Cats and dogs filtered (TensorFlow's tutorial)",
        {"cats_and_dogs_filtered/{train,validation}/{cats,dogs}": 4},
        "{cats,dogs}",
        "cats_and_dogs_filtered/train",
        val="cats_and_dogs_filtered/validation",
        files=("cats_and_dogs_filtered/vectorize.py",),
    ),
    PublicLayout(
        "Horses or humans",
        {f"horse-or-human/{HORSES}": 5, f"validation-horse-or-human/{HORSES}": 2},
        HORSES,
        "horse-or-human",
        val="validation-horse-or-human",
    ),
    PublicLayout(
        "Rock, paper, scissors of Moroney", {f"rps/{RPS}": 5, f"rps-test-set/{RPS}": 2}, RPS, "rps", "rps-test-set"
    ),
    PublicLayout(
        "Fruits-360",
        {
            f"fruits-360_dataset/fruits-360/Training/{FRUITS}": 5,
            f"fruits-360_dataset/fruits-360/Test/{FRUITS}": 2,
            "fruits-360_dataset/fruits-360/test-multiple_fruits": 4,
            "fruits-360_dataset/fruits-360/papers": 0,
        },
        FRUITS,
        "fruits-360_dataset/fruits-360/Training",
        "fruits-360_dataset/fruits-360/Test",
        warns="test-multiple_fruits/",
        files=("fruits-360_dataset/fruits-360/LICENSE",),
    ),
    PublicLayout(
        "100 sports",
        {f"{part}/{SPORTS}": 3 for part in ("train", "valid", "test")},
        SPORTS,
        "train",
        "test",
        val="valid",
        files=("sports.csv", "EfficientNetB0-100-(224 X 224)- 98.40.h5"),
    ),
    PublicLayout(
        "Birds with a consolidated copy",
        {f"{part}/{{ABBOTTS BABBLER,ZEBRA DOVE}}": 3 for part in ("consolidated", "train", "valid", "test")},
        "{ABBOTTS BABBLER,ZEBRA DOVE}",
        "train",
        "test",
        val="valid",
        warns="consolidated/",
    ),
    PublicLayout(
        "140k real and fake faces",
        {f"real_vs_fake/real-vs-fake/{part}/{{fake,real}}": 3 for part in ("train", "valid", "test")},
        "{fake,real}",
        "real_vs_fake/real-vs-fake/train",
        "real_vs_fake/real-vs-fake/test",
        val="real_vs_fake/real-vs-fake/valid",
        files=("train.csv", "test.csv", "valid.csv"),
    ),
    PublicLayout(
        "Alzheimer MRI",
        {f"Alzheimer_s Dataset/{part}/{DEMENTIA}": 3 for part in ("train", "test")},
        DEMENTIA,
        "Alzheimer_s Dataset/train",
        "Alzheimer_s Dataset/test",
    ),
    PublicLayout(
        "RAF-DB",
        {"DATASET/train/{1,2,3,4,5,6,7}": 4, "DATASET/test/{1,2,3,4,5,6,7}": 1},
        "{1,2,3,4,5,6,7}",
        "DATASET/train",
        "DATASET/test",
        files=("train_labels.csv", "test_labels.csv"),
    ),
    PublicLayout(
        "Stanford Cars by class",
        {
            "car_data/car_data/train/{AM General Hummer SUV 2000,Acura RL Sedan 2012}": 4,
            "car_data/car_data/test/{AM General Hummer SUV 2000,Acura RL Sedan 2012}": 2,
        },
        "{AM General Hummer SUV 2000,Acura RL Sedan 2012}",
        "car_data/car_data/train",
        "car_data/car_data/test",
        files=("anno_train.csv", "anno_test.csv", "names.csv"),
    ),
    PublicLayout(
        "Chest CT",
        {
            "Data/train/{adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib,normal}": 4,
            "Data/valid/{adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib,normal}": 2,
            "Data/test/{adenocarcinoma,normal}": 3,
        },
        refused=OTHER_CLASSES,
    ),
    PublicLayout(
        "Linnaeus 5",
        {"Linnaeus 5 64X64/{train,test}/{berry,bird,dog,flower,other}": 3},
        "{berry,bird,dog,flower,other}",
        "Linnaeus 5 64X64/train",
        "Linnaeus 5 64X64/test",
    ),
    PublicLayout(
        "Places365 small",
        {"places365_standard/{train,val}/{airfield,zen_garden}": 3},
        "{airfield,zen_garden}",
        "places365_standard/train",
        val="places365_standard/val",
        files=("places365_standard/train.txt", "places365_standard/val.txt"),
    ),
    PublicLayout(
        "Blood cells",
        {
            f"dataset2-master/dataset2-master/images/TRAIN/{CELLS}": 4,
            f"dataset2-master/dataset2-master/images/TEST/{CELLS}": 2,
            "dataset2-master/dataset2-master/images/TEST_SIMPLE/{EOSINOPHIL,LYMPHOCYTE}": 1,
        },
        CELLS,
        "dataset2-master/dataset2-master/images/TRAIN",
        "dataset2-master/dataset2-master/images/TEST",
        files=("dataset2-master/dataset2-master/labels.csv",),
    ),
    PublicLayout(
        "Casting, the data alone",
        {"casting_data/casting_data/{train,test}/{def_front,ok_front}": 3},
        "{def_front,ok_front}",
        "casting_data/casting_data/train",
        "casting_data/casting_data/test",
    ),
    PublicLayout(
        "DeepFashion-like doubled parts",
        {"train_images/train_images/{dress,shirt}": 4, "val_images/val_images/{dress,shirt}": 2},
        "{dress,shirt}",
        "train_images/train_images",
        val="val_images/val_images",
    ),
    # Test images without labels: a share is held out.
    PublicLayout(
        "ASL alphabet",
        {f"asl_alphabet_train/asl_alphabet_train/{LETTERS}": 6, "asl_alphabet_test/asl_alphabet_test": 6},
        LETTERS,
        "asl_alphabet_train/asl_alphabet_train",
        warns="asl_alphabet_test/",
    ),
    PublicLayout(
        "GTSRB as CSV",
        {"Train/{0,1,2,10,11}": 5, "Test": 5, "Meta": 5},
        "{0,1,2,10,11}",
        "Train",
        warns="Test/",
        files=("Train.csv", "Test.csv", "Meta.csv"),
    ),
    PublicLayout(
        "GTSRB official",
        {f"GTSRB/Final_Training/Images/{GTSRB}": 5, "GTSRB/Final_Test/Images": 5},
        GTSRB,
        "GTSRB/Final_Training/Images",
        warns="Final_Test/",
        files=("GTSRB/Readme-Images.txt", "GTSRB/Final_Training/Images/00000/GT-00000.csv"),
    ),
    PublicLayout(
        "Tiny ImageNet",
        {
            "tiny-imagenet-200/train/{n01443537,n01629819}/images": 5,
            "tiny-imagenet-200/val/images": 4,
            "tiny-imagenet-200/test/images": 4,
        },
        "{n01443537,n01629819}",
        "tiny-imagenet-200/train",
        warns="val/",
        files=(
            "tiny-imagenet-200/wnids.txt",
            "tiny-imagenet-200/val/val_annotations.txt",
            "tiny-imagenet-200/train/n01443537/n01443537_boxes.txt",
        ),
    ),
    PublicLayout(
        "ImageNet (ILSVRC, Kaggle)",
        {f"ILSVRC/Data/CLS-LOC/train/{SYNSETS}": 5, "ILSVRC/Data/CLS-LOC/val": 5, "ILSVRC/Data/CLS-LOC/test": 5},
        SYNSETS,
        "ILSVRC/Data/CLS-LOC/train",
        warns="val/",
        files=("ILSVRC/Annotations/CLS-LOC/val/x.xml", "ILSVRC/ImageSets/CLS-LOC/val.txt", "LOC_val_solution.csv"),
    ),
    PublicLayout(
        "Plant seedlings",
        {"train/{Black-grass,Charlock,Cleavers}": 5, "test": 5},
        "{Black-grass,Charlock,Cleavers}",
        "train",
        warns="test/",
        files=("sample_submission.csv",),
    ),
    PublicLayout(
        "State Farm drivers",
        {"imgs/train/{c0,c1,c2}": 5, "imgs/test": 5},
        "{c0,c1,c2}",
        "imgs/train",
        warns="test/",
        files=("driver_imgs_list.csv",),
    ),
    # The course's own script leaves a copy of the images beside train/ and val/.
    PublicLayout(
        "flower_photos, split by the course's script",
        {f"flower_photos/{FLOWERS}": 9, f"train/{FLOWERS}": 8, f"val/{FLOWERS}": 1},
        FLOWERS,
        "train",
        val="val",
        warns="flower_photos/",
    ),
    # Class folders alone.
    PublicLayout(
        "flower_photos", {f"flower_photos/{FLOWERS}": 6}, FLOWERS, "flower_photos", files=("flower_photos/LICENSE.txt",)
    ),
    PublicLayout(
        "Food-101",
        {"food-101/images/{apple_pie,baby_back_ribs,baklava}": 6},
        "{apple_pie,baby_back_ribs,baklava}",
        "food-101/images",
        files=("food-101/meta/classes.txt", "food-101/meta/train.json"),
    ),
    PublicLayout(
        "CUB-200-2011",
        {f"CUB_200_2011/images/{BIRDS}": 6},
        BIRDS,
        "CUB_200_2011/images",
        files=(
            "attributes.txt",
            "CUB_200_2011/images.txt",
            "CUB_200_2011/parts/parts.txt",
            "CUB_200_2011/attributes/certainties.txt",
        ),
    ),
    PublicLayout(
        "Stanford Dogs",
        {f"images/Images/{DOGS}": 5, "annotations/Annotation": 0},
        DOGS,
        "images/Images",
        files=("annotations/Annotation/n02085620-Chihuahua/n02085620_7",),
    ),
    PublicLayout(
        "Caltech-101",
        {"101_ObjectCategories/{BACKGROUND_Google,Faces,accordion}": 5},
        "{BACKGROUND_Google,Faces,accordion}",
        "101_ObjectCategories",
        files=("Annotations/accordion/annotation_0001.mat", "show_annotation.m"),
    ),
    PublicLayout(
        "Caltech-256",
        {"256_ObjectCategories/{001.ak47,002.american-flag,257.clutter}": 5},
        "{001.ak47,002.american-flag,257.clutter}",
        "256_ObjectCategories",
    ),
    PublicLayout(
        "Textures (DTD)",
        {"dtd/images/{banded,blotchy,zigzagged}": 5},
        "{banded,blotchy,zigzagged}",
        "dtd/images",
        files=("dtd/labels/train1.txt", "dtd/imdb/imdb.mat"),
    ),
    PublicLayout(
        "EuroSAT", {"EuroSAT/2750/{AnnualCrop,Forest,SeaLake}": 5}, "{AnnualCrop,Forest,SeaLake}", "EuroSAT/2750"
    ),
    PublicLayout(
        "UC Merced land use",
        {"UCMerced_LandUse/Images/{agricultural,airplane,tenniscourt}": 5},
        "{agricultural,airplane,tenniscourt}",
        "UCMerced_LandUse/Images",
        files=("UCMerced_LandUse/readme.txt",),
    ),
    PublicLayout(
        "PatternNet",
        {"PatternNet/images/{airplane,bridge}": 5},
        "{airplane,bridge}",
        "PatternNet/images",
        files=("PatternNet/patternnet_description.pdf",),
    ),
    PublicLayout(
        "Cats and dogs of Microsoft",
        {"PetImages/{Cat,Dog}": 6},
        "{Cat,Dog}",
        "PetImages",
        files=("readme[1].txt", "MSR-LA - 3467.docx", "PetImages/Cat/Thumbs.db"),
    ),
    PublicLayout(
        "Animals-10",
        {"raw-img/{cane,cavallo,elefante}": 5},
        "{cane,cavallo,elefante}",
        "raw-img",
        files=("translate.py",),
    ),
    PublicLayout(
        "Garbage classification",
        {f"Garbage classification/Garbage classification/{RUBBISH}": 3},
        RUBBISH,
        "Garbage classification/Garbage classification",
        files=("one-indexed-files.txt", "zero-indexed-files.txt"),
    ),
    PublicLayout(
        "TrashNet",
        {f"dataset-resized/{RUBBISH}": 3},
        RUBBISH,
        "dataset-resized",
        files=("dataset-resized/.DS_Store", "__MACOSX/dataset-resized/._.DS_Store"),
    ),
    PublicLayout(
        "Rice images",
        {"Rice_Image_Dataset/{Arborio,Basmati,Ipsala}": 4},
        "{Arborio,Basmati,Ipsala}",
        "Rice_Image_Dataset",
        files=("Rice_Image_Dataset/Rice_Citation_Request.txt",),
    ),
    PublicLayout("Concrete cracks", {"{Negative,Positive}": 6}, "{Negative,Positive}"),
    PublicLayout(
        "Colorectal histology",
        {"Kather_texture_2016_image_tiles_5000/{01_TUMOR,02_STROMA,08_EMPTY}": 4},
        "{01_TUMOR,02_STROMA,08_EMPTY}",
        "Kather_texture_2016_image_tiles_5000",
    ),
    PublicLayout(
        "Smiles",
        {"SMILEs/negatives/negatives7": 6, "SMILEs/positives/positives7": 6},
        "{negatives,positives}",
        "SMILEs",
    ),
    PublicLayout(
        "BreakHis",
        {
            "BreaKHis_v1/histology_slides/breast/benign/SOB/{adenosis,fibroadenoma}/SOB_B_1/{40X,100X}": 2,
            "BreaKHis_v1/histology_slides/breast/malignant/SOB/{ductal_carcinoma,papillary}/SOB_M_1/{40X,100X}": 2,
        },
        "{benign,malignant}",
        "BreaKHis_v1/histology_slides/breast",
        warns="is one class with the images of all",
        files=("BreaKHis_v1/histology_slides/breast/README.txt",),
    ),
    PublicLayout(
        "Real and fake faces",
        {"real_and_fake_face/{training_fake,training_real}": 6},
        "{training_fake,training_real}",
        "real_and_fake_face",
        warns="taken for classes",
    ),
    PublicLayout(
        "Malaria cells with their nested copy",
        {f"cell_images/{MALARIA}": 5, f"cell_images/cell_images/{MALARIA}": 5},
        MALARIA,
        "cell_images",
        warns="cell_images/",
    ),
    PublicLayout(
        "PlantVillage with its nested copy",
        {f"PlantVillage/{PLANTS}": 5, f"PlantVillage/PlantVillage/{PLANTS}": 5},
        PLANTS,
        "PlantVillage",
        warns="PlantVillage/",
    ),
    PublicLayout(
        "Rock, paper, scissors with a copy",
        {f"{RPS}": 5, f"rps-cv-images/{RPS}": 5},
        RPS,
        warns="rps-cv-images/",
        files=("README_rpc-cv-images.txt",),
    ),
    PublicLayout("Photos on a network drive", {"{Anna,Ben}": 5, "{Anna,Ben}/@eaDir": 5, "@eaDir": 2}, "{Anna,Ben}"),
    PublicLayout("Face masks", {"data/{with_mask,without_mask}": 5}, "{with_mask,without_mask}", "data"),
    PublicLayout(
        "Trains and other vehicles", {"{bus,car,train}": 5}, "{bus,car,train}", warns="taken for classes: train"
    ),
    # Parts whose names do not say which is which.
    PublicLayout(
        "PlantVillage",
        {f"plantvillage dataset/{part}/{PLANTS}": 3 for part in ("color", "grayscale", "segmented")},
        refused=PARTS,
    ),
    PublicLayout("Folds", {"fold{1,2,3,4,5}/{benign,malignant}": 3}, refused=PARTS),
    PublicLayout("Office-31", {f"{{amazon,dslr,webcam}}/images/{OFFICE}": 3}, refused=PARTS),
    PublicLayout(
        "Office-Home",
        {"OfficeHomeDataset_10072016/{Art,Clipart,Product,Real World}/{Alarm_Clock,Backpack}": 3},
        refused=PARTS,
    ),
    PublicLayout("PACS", {"pacs_data/{art_painting,cartoon,photo,sketch}/{dog,elephant,giraffe}": 3}, refused=PARTS),
    PublicLayout(
        "DomainNet",
        {"{clipart,infograph,quickdraw}/{aircraft_carrier,airplane}": 3},
        refused=PARTS,
        files=("clipart_train.txt",),
    ),
    PublicLayout(
        "Augmented Alzheimer", {f"{{AugmentedAlzheimerDataset,OriginalDataset}}/{DEMENTIA}": 2}, refused=PARTS
    ),
    PublicLayout("notMNIST", {"{notMNIST_large,notMNIST_small}/{A,B,C}": 2}, refused=PARTS),
    PublicLayout("ImageNet-C", {f"gaussian_noise/{{1,2,3,4,5}}/{SYNSETS}": 1}, refused=PARTS),
    PublicLayout(
        "CUB with segmentations", {f"CUB_200_2011/images/{BIRDS}": 3, f"segmentations/{BIRDS}": 3}, refused=PARTS
    ),
    PublicLayout("Chars74K", {"English/Img/{GoodImg,BadImag}/Bmp/{Sample001,Sample002}": 3}, refused=PARTS),
    PublicLayout(
        "COVID-19 radiography",
        {"{COVID,Lung_Opacity,Normal,Viral Pneumonia}/{images,masks}": 3},
        refused=SAME_INSIDE,
        files=("COVID.metadata.xlsx", "README.md.txt"),
    ),
    PublicLayout(
        "MVTec AD",
        {
            "{bottle,cable}/train/good": 3,
            "{bottle,cable}/test/{good,broken}": 3,
            "{bottle,cable}/ground_truth/broken": 3,
        },
        refused=OWN_PARTS,
    ),
    PublicLayout(
        "MVTec AD, one object",
        {"bottle/train/good": 3, "bottle/test/{good,broken_large}": 3, "bottle/ground_truth/broken_large": 3},
        refused=ONE_CLASS,
    ),
    PublicLayout(
        "Casting with a second size",
        {
            "casting_512x512/casting_512x512/{def_front,ok_front}": 3,
            "casting_data/casting_data/{train,test}/{def_front,ok_front}": 3,
        },
        refused=OWN_PARTS,
    ),
    PublicLayout(
        "Omniglot",
        {
            "images_background/{Greek,Hebrew}/{character01,character02}": 2,
            "images_evaluation/{Angelic,Atlantean}/{character01,character02}": 2,
        },
        refused=NO_TRAIN,
    ),
    PublicLayout(
        "GTSRB with doubled folders", {"{Train,train}/{0,1,2}": 3, "{Test,test}": 3, "{Meta,meta}": 3}, refused=TWO
    ),
    # Labels that are not in folders.
    PublicLayout("Dogs vs. cats of Kaggle", {"train": 6, "test1": 6}, refused=LOOSE, files=("sampleSubmission.csv",)),
    PublicLayout("Stanford Cars", {"cars_train/cars_train": 6, "cars_test/cars_test": 6}, refused=LOOSE),
    PublicLayout("COCO", {"train2017": 5, "val2017": 5}, refused=LOOSE, files=("annotations/instances_val2017.json",)),
    PublicLayout(
        "Market-1501", {"Market-1501-v15.09.15/{bounding_box_train,bounding_box_test,query,gt_bbox}": 3}, refused=LOOSE
    ),
    PublicLayout("SVHN", {"{train,test,extra}": 4}, refused=LOOSE, files=("train/digitStruct.mat",)),
    PublicLayout(
        "YOLO", {"{train,valid,test}/images": 4}, refused=LOOSE, files=("data.yaml", "train/labels/00000.txt")
    ),
    PublicLayout(
        "Oxford pets",
        {"images": 6, "annotations/trimaps": 6},
        refused=LOOSE,
        files=("annotations/list.txt", "annotations/xmls/Abyssinian_1.xml"),
    ),
    PublicLayout(
        "Pascal VOC",
        {"VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,SegmentationObject}": 4},
        refused=LOOSE,
        files=("VOCdevkit/VOC2012/Annotations/2007_000027.xml", "VOCdevkit/VOC2012/ImageSets/Main/train.txt"),
    ),
    PublicLayout("Flowers 102", {"jpg": 6}, refused=ONE_CLASS, files=("imagelabels.mat", "setid.mat")),
    PublicLayout(
        "HAM10000",
        {"{HAM10000_images_part_1,HAM10000_images_part_2}": 4},
        refused=NUMBERED,
        files=("HAM10000_metadata.csv",),
    ),
    PublicLayout(
        "ChestX-ray14",
        {"{images_001,images_002,images_012}/images": 4},
        refused=NUMBERED,
        files=("Data_Entry_2017.csv",),
    ),
    PublicLayout("UTKFace", {"{part1,part2,part3}": 4}, refused=NUMBERED),
    PublicLayout(
        "FGVC aircraft",
        {"fgvc-aircraft-2013b/data/images": 6},
        refused=ONE_CLASS,
        files=("fgvc-aircraft-2013b/data/variants.txt",),
    ),
    PublicLayout(
        "SUN397",
        {"SUN397/a/{abbey,airplane_cabin,amphitheater}": 2, "SUN397/b/{badminton_court,bakery}": 2, "SUN397/z/zoo": 2},
        refused=INITIALS,
        files=("SUN397/ClassName.txt",),
    ),
    PublicLayout(
        "Labelled faces in the wild",
        {"lfw/{Aaron_Eckhart,Zydrunas_Ilgauskas}": 1, "lfw/Aaron_Peirsol": 4},
        refused=ONE_IMAGE,
    ),
    # The parts of a wrapper, and what lies beside the parts.
    PublicLayout(
        "parts in a folder named for training",
        {"training_data/{train,test}/{cat,dog}": 3},
        "{cat,dog}",
        "training_data/train",
        "training_data/test",
    ),
    PublicLayout(
        "More training images",
        {"{train,train_extra,val}/{cat,dog}": 3},
        "{cat,dog}",
        "train",
        val="val",
        warns="train_extra",
    ),
    PublicLayout(
        "Places by name, of which one has a word for training",
        {"train_station/{platform,hall}": 3, "{beach,abbey,bakery,zoo}": 4},
        refused=NOT_A_SPLIT,
    ),
    PublicLayout(
        "Places365 of 256 pixels", {"data_256/a/{abbey,airfield}": 3, "{val_256,test_256}": 4}, refused=NO_TRAIN
    ),
    # Folders that are no classes, inside of the training images.
    PublicLayout("Segmentation", {"{train,val}/{images,masks}": 4}, refused=LOOSE),
    PublicLayout("COVID-19 in parts", {"{train,val}/{COVID,Normal}/{images,masks}": 4}, refused=SAME_INSIDE),
    PublicLayout(
        "Folds of the training images", {"train/{fold1,fold2}/{cat,dog}": 3, "val/{cat,dog}": 3}, refused=PARTS
    ),
    PublicLayout(
        "Figures beside the data", {"data/{cat,dog}": 4, "figures": 2}, "{data,figures}", warns="data/ is one"
    ),
]
