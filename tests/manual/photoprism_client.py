"""PhotoPrism's vision requests, its client as it is in its public sources: ``/api/generate`` with a picture of 720
pixels, and ``/v1/responses``.

    python tests/manual/photoprism_client.py SOURCE_DIR [ollama] [responses]

SOURCE_DIR: a checkout of github.com/photoprism/photoprism. Nothing of it is copied here. Its Go modules are fetched; the
package is linked with libtensorflow, so this runs where that is, as in PhotoPrism's development container.
"""

from __future__ import annotations

import base64
import io

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture
from go_sources import PACKAGES, printed, run_go

CODE = """\
package vision

import (
	"fmt"
	"net/http"
	"os"
	"testing"
)

func TestPyfastv(t *testing.T) {
	format := ApiFormatOllama
	if os.Getenv("FORMAT") == "openai" {
		format = ApiFormatOpenAI
	}
	request := &ApiRequest{Model: "pyfastv", Prompt: os.Getenv("PROMPT"), Images: Files{os.Getenv("IMAGE")},
		ResponseFormat: format}
	response, err := PerformApiRequest(request, os.Getenv("URI"), http.MethodPost, "")
	if err != nil {
		t.Fatal(err)
	}
	if response.Result.Caption == nil {
		t.Fatalf("no caption: %+v", response)
	}
	fmt.Printf("\\ncaption: %q\\n", response.Result.Caption.Text)
}
"""


def _jpeg() -> str:
    from PIL import Image

    made = io.BytesIO()
    with Image.open(picture(CLOCK)) as image:
        image.convert("RGB").resize((720, 720)).save(made, "JPEG")
    return base64.b64encode(made.getvalue()).decode()


def _caption(served: Served, what: str, path: str, image: str) -> None:
    env = {"FORMAT": what, "URI": served.url + path, "PROMPT": QUESTION, "IMAGE": image}
    text = printed(run_go("internal/ai/vision", CODE, env), "caption: ")
    served.check(f"{what}: a caption", text.strip('" '), ANSWER)


def ollama(served: Served) -> None:
    _caption(served, "ollama", "/api/generate", _jpeg())


def responses(served: Served) -> None:
    _caption(served, "openai", "/v1/responses", f"data:image/jpeg;base64,{_jpeg()}")


if __name__ == "__main__":
    main(
        {"ollama": ollama, "responses": responses},
        [*PACKAGES, "pillow"],
        options=("--temp", "0"),
        source="a checkout of PhotoPrism's sources",
    )
