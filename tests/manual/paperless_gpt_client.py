"""paperless-gpt's reading of a page by a vision model, its provider as it is in its public sources: a page of 40
megapixels, the picture before the prompt; by OpenAI's API and by Ollama's.

    python tests/manual/paperless_gpt_client.py SOURCE_DIR [openai] [ollama]

SOURCE_DIR: a checkout of github.com/icereed/paperless-gpt. Nothing of it is copied here. Its Go modules are fetched, but
for those of other providers, which are left out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture
from go_sources import PACKAGES, printed, run_go

ONLY = ("provider.go", "llm_provider.go")
CODE = """\
package ocr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/tmc/langchaingo/llms"
)

var errLeftOut = errors.New("left out")

func newAzureProvider(Config) (Provider, error)       { return nil, errLeftOut }
func newDoclingProvider(Config) (Provider, error)     { return nil, errLeftOut }
func newGoogleDocAIProvider(Config) (Provider, error) { return nil, errLeftOut }
func newMistralOCRProvider(Config) (Provider, error)  { return nil, errLeftOut }

func NewGoogleAIProvider(context.Context, string, string, *int32) (llms.Model, error) {
	return nil, errLeftOut
}

func TestPyfastv(t *testing.T) {
	config := Config{Provider: "llm", VisionLLMProvider: os.Getenv("PROVIDER"), VisionLLMModel: "pyfastv",
		VisionLLMPrompt: os.Getenv("PROMPT")}
	provider, err := NewProvider(config)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(os.Getenv("PAGE"))
	if err != nil {
		t.Fatal(err)
	}
	result, err := provider.ProcessImage(context.Background(), page, 1)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\\nread: %q\\n", result.Text)
}
"""


def _read(served: Served, provider: str) -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.jpg"
        with Image.open(picture(CLOCK)) as image:
            image.convert("RGB").resize((6324, 6324)).save(page, "JPEG", quality=80)
        env = {
            "PROVIDER": provider,
            "PROMPT": QUESTION,
            "PAGE": str(page),
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": f"{served.url}/v1",
            "OLLAMA_HOST": served.url,
        }
        text = printed(run_go("ocr", CODE, env, only=ONLY), "read: ")
    served.check(f"{provider}: a page of 40 megapixels", text.strip('" '), ANSWER)


def openai(served: Served) -> None:
    _read(served, "openai")


def ollama(served: Served) -> None:
    _read(served, "ollama")


if __name__ == "__main__":
    main(
        {"openai": openai, "ollama": ollama},
        [*PACKAGES, "pillow"],
        options=("--max-pixels", "64000000", "--temp", "0"),
        source="a checkout of paperless-gpt's sources",
    )
