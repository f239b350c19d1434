// The live microphone: samples as the browser hears them, posted in order to live/STREAM; nothing is left out.
// While a post is on its way samples are gathered; its reply names the turns that are over, and their names go into a
// hidden field of the page, which asks about them.
window.live = {
  say(text) {
    document.querySelector("#live-status").textContent = text;
  },

  async toggle(pause) {
    if (this.stop) {
      await this.stop();
      return "Start listening";
    }
    try {
      await this.start(pause);
    } catch (error) {
      this.say(
        error.name === "NotAllowedError"
          ? "The browser does not allow this page to use the microphone. Allow it beside the address, and start again."
          : `There is no microphone to listen to (${error.message}). Connect one, and start again.`,
      );
      return "Start listening";
    }
    return "Stop";
  },

  async start(pause) {
    if (!navigator.mediaDevices) throw new Error("browsers give pages one only at localhost or over https");
    const media = await navigator.mediaDevices.getUserMedia({ audio: true });
    const context = new AudioContext();
    const tap = `registerProcessor("tap", class extends AudioWorkletProcessor {
      process([input]) { if (input.length) this.port.postMessage(input[0].slice()); return true; }
    })`;
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([tap], { type: "text/javascript" })));
    const node = new AudioWorkletNode(context, "tap");
    context.createMediaStreamSource(media).connect(node);
    let waiting = [];
    node.port.onmessage = (event) => waiting.push(event.data);
    const options = `rate=${context.sampleRate}&pause=${pause}`;
    const address = `live/${crypto.randomUUID()}?${options}`;
    const post = async (end) => {
      const pieces = waiting;
      waiting = [];
      const reply = await fetch(address + (end ? "&end=1" : ""), { method: "POST", body: new Blob(pieces) });
      if (!reply.ok) throw new Error(await reply.text());
      this.tell(await reply.json());
    };
    let on = true;
    const close = () => {
      on = false;
      this.stop = null;
      media.getTracks().forEach((track) => track.stop());
      return context.close();
    };
    const posting = (async () => {
      let end = false;
      while (!end) {
        await new Promise((resolve) => setTimeout(resolve, CHUNK_MILLISECONDS));
        end = !on;
        await post(end);
      }
    })().catch(async (error) => {
      await close();
      this.say(`The page's server does not take what you say (${error.message}). Stop, and start again.`);
    });
    this.stop = async () => {
      await close();
      await posting;
    };
    this.say("Listening.");
  },

  tell({ speaking, turns, ended, short }) {
    if (turns.length) {
      const field = document.querySelector("#live-turns textarea, #live-turns input");
      field.value = [field.value, ...turns].join(" ").trim();
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
    if (ended) this.say("The microphone is off.");
    else if (speaking) this.say("I hear you.");
    else if (turns.length) this.say("Your turn is sent.");
    else if (short) this.say("That was too short for a turn.");
    else if (Date.now() - (this.told ?? 0) > 1500) this.say("Listening.");
    if (speaking || turns.length || short) this.told = Date.now();
  },
};
