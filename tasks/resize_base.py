"""Stage resize_base: the base with a row for each new token, saved before any adapter sees it."""

from pathlib import Path

from tasks._base import find_base
from tasks._stage import run_stage
from vocabgraft.artifacts import new_folder, write_json
from vocabgraft.base_model import load_model
from vocabgraft.model_folder import save_model
from vocabgraft.params import BaseParams, ResizeBaseParams
from vocabgraft.resizing import resize_model
from vocabgraft.tokenizer import load_tokenizer, read_tokens


def resize_base(
    base_identity: Path, tokenizer: Path, tokens: Path, out: Path, params: ResizeBaseParams, base: BaseParams
) -> None:
    """Resize, initialise and save: an adapter trained on a resize that was not saved cannot be loaded again."""
    model = load_model(find_base(base_identity), device="cpu")
    new_tokens = read_tokens(tokens)
    resize_model(model, load_tokenizer(tokenizer), new_tokens, base.prompts)
    weight = model[0].auto_model.get_input_embeddings().weight
    norms = weight.detach().norm(dim=1)
    new = [token.id for token in new_tokens]
    report = {
        "initialisation": params.initialisation,
        "rows": int(weight.shape[0]),
        "new_rows": len(new),
        "mean_norm_of_old_rows": round(float(norms[: min(new)].mean()), 6),
        "mean_norm_of_new_rows": round(float(norms[new].mean()), 6),
    }
    with new_folder(out) as work:
        save_model(model, work)
        write_json(work / "report.json", report)


if __name__ == "__main__":
    raise SystemExit(run_stage(resize_base))
