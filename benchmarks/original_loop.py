"""Run the loop of the original project in PyTorch: MobileNetV3-Large for images, CLIP ViT-B/32 for texts, flat index.

    python benchmarks/original_loop.py weights FOLDER          # write random weights with a fixed seed
    python benchmarks/original_loop.py index FOLDER IMAGES     # embed a folder of images, in batches
    python benchmarks/original_loop.py text|image FOLDER QUERY # print the 12 nearest images

benchmarks/peers_tool.py starts it with the Python of an environment with torch, torchvision, open_clip and faiss. The
original embeds the images with a second network for text queries; here random vectors replace these, which cost no
time. The results are meaningless, only the speed is real.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 32
CLIP = "ViT-B-32-quickgelu"


def mobilenet(weights: Path | None = None) -> Any:
    """Return MobileNetV3-Large with the weights of a file."""
    from torchvision.models import mobilenet_v3_large

    network = mobilenet_v3_large(weights=None)
    if weights:
        network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()


def embed(network: Any, files: list[Path]) -> Any:
    """Return the features (N, 960) of image files."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    features = torch.nn.Sequential(network.features, network.avgpool, torch.nn.Flatten())
    batches = []
    with torch.no_grad():
        for start in range(0, len(files), BATCH):
            images = [transform(Image.open(path).convert("RGB")) for path in files[start : start + BATCH]]
            batches.append(features(torch.stack(images)).numpy())
    return np.concatenate(batches)


def embed_text(weights: Path, text: str) -> Any:
    """Return the embedding (1, 512) of a text."""
    import open_clip

    network = open_clip.create_model(CLIP)
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        return network.eval().encode_text(open_clip.get_tokenizer(CLIP)([text])).numpy()


def main() -> None:
    task, folder, *rest = sys.argv[1:]
    at = Path(folder)
    if task == "weights":
        import open_clip

        torch.manual_seed(0)
        torch.save(mobilenet().state_dict(), at / "mobilenet.pth")
        torch.save(open_clip.create_model(CLIP).state_dict(), at / "clip.pth")
    elif task == "index":
        files = sorted(Path(rest[0]).iterdir())
        np.save(at / "image.npy", embed(mobilenet(at / "mobilenet.pth"), files))
        np.save(at / "text.npy", np.random.default_rng(0).standard_normal((len(files), 512), np.float32))
    else:
        import faiss

        if task == "text":
            query = embed_text(at / "clip.pth", rest[0])
        else:
            query = embed(mobilenet(at / "mobilenet.pth"), [Path(rest[0])])
        vectors = np.load(at / f"{task}.npy")
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(vectors)
        print(*index.search(query, 12)[1][0])


if __name__ == "__main__":
    main()
