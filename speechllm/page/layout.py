"""How the page looks: Gradio's components, and which handler each of them calls."""

from pathlib import Path

import gradio as gr

from .conversation import Conversation
from .handlers import Handlers
from .live import PAUSE
from .microphones import CHUNK
from .samples import INSTRUCTIONS

START = "Start listening"  # as in live.js
KEPT = 3600  # seconds that recordings stay in the server's temporary folder
SHOW_CHAT = "() => document.querySelector('#chat').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
CSS = """
footer { display: none !important }
.problem { border: 1px solid #b91c1c; border-left-width: 6px; border-radius: 6px; background: #fef2f2;
  color: #7f1d1d; padding: 10px 14px }
.guess { border: 1px solid #b45309; border-left-width: 6px; border-radius: 6px; background: #fffbeb;
  color: #78350f; padding: 10px 14px }
.message small { opacity: 0.65 }
#remember input { border: 1px solid #6b7280 }
#languages { border: none !important }
#live-status { padding: 4px 2px; font-weight: 600 }
#chat button[title="Share"] { display: none }
"""


def head() -> str:
    """What stands in the page's head: the script of the live microphone."""
    script = (Path(__file__).parent / "live.js").read_text(encoding="utf-8")
    return f"<script>{script.replace('CHUNK_MILLISECONDS', str(round(1000 * CHUNK)))}</script>"


def theme() -> gr.themes.Base:
    """Gradio's own, with fonts of the system: nothing is fetched from elsewhere."""
    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"])


def enabled(on: bool) -> str:
    """JavaScript that gives a button's update."""
    return f"() => ({{__type__: 'update', interactive: {str(on).lower()}}})"


def build(handlers: Handlers, title: str, about: str = "", remembers: bool = True) -> gr.Blocks:
    """The page.

    Args:
        title: name of the model that is talked to.
        about: what people should know of it, in Markdown.
        remembers: whether earlier turns are sent unless people choose otherwise.
    """
    hearing = handlers.hearing
    tells = hearing is not None and hearing.tells_anything
    with gr.Blocks(title=f"Talk to {title}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        conversation = gr.State(Conversation())
        gr.Markdown(f"# Talk to {title}\nRecord or upload something, say what you want to know, and read the answer.")
        if about:
            gr.Markdown(about)
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                with gr.Tabs():
                    with gr.Tab("Record or upload"):
                        audio = gr.Audio(
                            label="Your recording",
                            sources=["microphone", "upload"],
                            type="filepath",
                            buttons=[],
                            elem_id="recording",
                        )
                    with gr.Tab("Live"):
                        gr.Markdown(
                            "Press start and speak. Whenever you pause, what you said is sent with the question below."
                        )
                        listen = gr.Button(START, elem_id="listen")
                        gr.HTML('<div id="live-status" role="status">The microphone is off.</div>')
                        pause = gr.Slider(0.3, 2.0, PAUSE, step=0.1, label="Pause that ends a turn, in seconds")
                        turns = gr.Textbox(visible="hidden", elem_id="live-turns")
                instruction = gr.Textbox(
                    INSTRUCTIONS[0], label="What do you want to know?", lines=1, max_lines=4, elem_id="instruction"
                )
                remember = gr.Checkbox(remembers, label="Remember the earlier turns", elem_id="remember")
                with gr.Row():
                    new = gr.Button("New conversation", elem_id="new")
                    send = gr.Button("Ask", variant="primary", elem_id="ask")
                trouble = gr.HTML(visible=False, elem_id="problem")
                ideas = gr.Dataset(
                    label="Ideas",
                    components=[gr.Textbox(visible=False)],
                    samples=[[text] for text in INSTRUCTIONS],
                    elem_id="ideas",
                )
            with gr.Column(scale=3, min_width=340):
                chat = gr.Chatbot(
                    label="Conversation",
                    height=520,
                    buttons=["copy"],
                    elem_id="chat",
                    placeholder="Your questions and the answers.",
                )
                remark = gr.HTML(visible=False, elem_id="remark")
                with gr.Group(visible=tells):
                    transcript = gr.Textbox(
                        label="What the encoder heard, word for word",
                        visible=tells and hearing.tells_transcript,
                        elem_id="transcript",
                    )
                    languages = gr.Label(
                        label="Which language it heard",
                        num_top_classes=6,
                        show_heading=False,
                        visible=tells and hearing.tells_language,
                        elem_id="languages",
                    )
        examples = gr.Dataset(
            label="No microphone at hand? Take one of these recordings",
            components=[gr.Textbox(visible=False)],
            samples=[[sample.label] for sample in handlers.samples],
            type="index",
            elem_id="examples",
        )
        heard = [transcript, languages, remark]
        # "multiple": a press while a question is open is not passed over in silence; the conversation answers it.
        asked = gr.on(
            [send.click, instruction.submit],
            handlers.ask,
            [audio, instruction, remember, conversation],
            [audio, chat, trouble],
            trigger_mode="multiple",
            show_progress="hidden",
            concurrency_limit=None,
        )
        # Where the columns stand one below the other, the conversation comes into sight.
        gr.on([send.click, instruction.submit], None, None, None, js=SHOW_CHAT)
        # From the press on record until the browser has sent the recording there is nothing to ask about yet.
        audio.start_recording(None, None, send, js=enabled(False))
        gr.on([audio.change, audio.clear], None, None, send, js=enabled(True))
        examples.click(handlers.pick, examples, [audio, instruction, ideas], show_progress="hidden")
        ideas.click(lambda row: row[0], ideas, instruction, show_progress="hidden")
        listen.click(None, pause, listen, js="(pause) => window.live.toggle(pause)")
        answered = turns.change(
            handlers.ask_spoken,
            [turns, instruction, remember, conversation],
            [audio, chat, trouble],
            trigger_mode="always_last",
            show_progress="hidden",
            concurrency_limit=None,
        )
        for answer in (asked, answered):
            answer.then(handlers.tell, conversation, heard, show_progress="hidden", concurrency_limit=None)
        gr.on(
            [new.click, chat.clear],
            handlers.new,
            None,
            [audio, conversation, chat, trouble, *heard],
            cancels=[asked, answered],
            show_progress="hidden",
        )
    return page


__all__ = ["CSS", "build", "head", "theme"]
