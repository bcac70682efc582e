"""PhotoPrism's vision requests, its client as it is in its public sources: ``/api/generate`` with a picture of 720
pixels, and ``/v1/responses``.

    python tests/manual/photoprism_client.py SOURCE_DIR [ollama] [responses]

SOURCE_DIR: a checkout of github.com/photoprism/photoprism. Nothing of it is copied here. Of its vision package the files
that make requests and read responses are called; what else they name of the program (its database, its own models, which
need libtensorflow) stands in as a few names. Go modules are fetched.
"""

from __future__ import annotations

import base64
import io

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture
from go_sources import PACKAGES, printed, run_go

ONLY = (
    *("api_client.go", "api_format.go", "api_ollama.go", "api_request.go", "api_response.go"),
    *("engine.go", "engine_ollama.go", "engine_openai.go", "errors.go", "model_options.go", "model_types.go"),
)
INSTEAD = {
    "internal/ai/classify/stand_in.go": """\
package classify

type Label struct {
	Name, Source                                        string
	Priority, Uncertainty, Topicality, NSFWConfidence int
	NSFW                                                bool
	Categories                                          []string
}

type Labels []Label

func (l Label) Confidence() float32 { return 0 }
""",
    "internal/ai/face/stand_in.go": "package face\n\ntype Embeddings [][]float64\n",
    "internal/ai/nsfw/stand_in.go": "package nsfw\n\ntype Result struct{}\n",
    "internal/entity/stand_in.go": """\
package entity

const (
	SrcAuto, SrcImage   = "", "image"
	SrcOllama, SrcOpenAI = "ollama", "openai"
)
""",
    "internal/api/download/stand_in.go": """\
package download

func Register(string, string) error { return nil }
""",
    "pkg/clean/stand_in.go": """\
package clean

func Error(err error) string          { return err.Error() }
func JSON(s string) string            { return s }
func Log(s string) string             { return s }
func ShortTypeLower(s string) string  { return s }
func Type(s string) string            { return s }
func TypeLowerUnderscore(s string) string { return s }
""",
    "pkg/fs/stand_in.go": "package fs\n\nfunc FileExistsNotEmpty(string) bool { return false }\n",
    "pkg/media/stand_in.go": """\
package media

import "io"

func DataBase64(io.Reader) string { return "" }
func DataUrl(io.Reader) string    { return "" }
""",
    "pkg/rnd/stand_in.go": 'package rnd\n\nfunc UUID() string { return "0" }\n',
}
CODE = """\
package vision

import (
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// what other files of the package have

type Service struct {
	RequestFormat ApiFormat
}

type Model struct {
	Type, Name, Version, Engine string
	Resolution                  int
	Service                     Service
}

func (m *Model) ApplyEngineDefaults()               {}
func (m *Model) EndpointFileScheme() string         { return "base64" }
func (m *Model) EndpointRequestFormat() ApiFormat   { return m.Service.RequestFormat }
func (m *Model) EndpointResponseFormat() ApiFormat  { return m.Service.RequestFormat }
func (m *Model) GetFormat() string                  { return "" }
func (m *Model) GetModel() (string, string, string) { return m.Name, m.Name, m.Version }
func (m *Model) GetOptions() *ModelOptions          { return nil }
func (m *Model) PromptContains(string) bool         { return false }
func (m *Model) SchemaTemplate() string             { return "" }

func cloneOptions(o *ModelOptions) *ModelOptions { return o }
func ensureEnv()                                 {}
func normalizeLabelResult(*LabelResult)          {}

var (
	log                     = logrus.New()
	ServiceTimeout          = 10 * time.Minute
	MaxResponseBytes  int64 = 1 << 24
	DownloadUrl             = ""
	DetectNSFWLabels        = false
	DefaultTemperature      = 0.1
	DefaultResolution       = 720
	CaptionModel            = &Model{}
	DefaultLabelModel       = &Model{}
	NasnetModel             = &Model{}
)

func TestPyfastv(t *testing.T) {
	format := ApiFormatOllama
	if os.Getenv("FORMAT") == "openai" {
		format = ApiFormatOpenAI
	}
	request := &ApiRequest{Model: "pyfastv", Prompt: os.Getenv("PROMPT"), Images: Files{os.Getenv("IMAGE")},
		ResponseFormat: format}
	if engine, ok := EngineFor(format); ok {
		request.Options = engine.Defaults.Options(&Model{Type: ModelTypeCaption})
	}
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
    text = printed(run_go("internal/ai/vision", CODE, env, only=ONLY, instead=INSTEAD), "caption: ")
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
