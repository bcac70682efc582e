"""docling's remote VLM option: a page that is a picture is converted by asking the server about it.

python tests/manual/docling_client.py
"""

from __future__ import annotations

from clients import ANSWER, CLOCK, QUESTION, Served, main, picture


def convert(served: Served) -> None:
    from docling.datamodel.base_models import InputFormat
    from docling.datamodel.pipeline_options import VlmPipelineOptions
    from docling.datamodel.pipeline_options_vlm_model import ApiVlmOptions, ResponseFormat
    from docling.document_converter import DocumentConverter, ImageFormatOption
    from docling.pipeline.vlm_pipeline import VlmPipeline

    options = VlmPipelineOptions(enable_remote_services=True)
    options.vlm_options = ApiVlmOptions(
        url=f"{served.url}/v1/chat/completions",
        params={"model": "pyfastv", "max_tokens": 100},
        prompt=QUESTION,
        timeout=90,
        scale=1.0,
        temperature=0.0,
        response_format=ResponseFormat.MARKDOWN,
    )
    converter = DocumentConverter(
        format_options={
            InputFormat.IMAGE: ImageFormatOption(pipeline_cls=VlmPipeline, pipeline_options=options)
        }
    )
    document = converter.convert(picture(CLOCK)).document
    served.check("markdown", document.export_to_markdown(), ANSWER)


if __name__ == "__main__":
    main({"convert": convert}, ["docling"])
