/* Search in pages opened from a folder: browsers start no worker there, so its script runs in a frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.addEventListener("DOMContentLoaded", () => document.body.append(this.frame))
      if (document.body) document.body.append(this.frame)
      window.addEventListener("message", ({ data, source }) => {
        if (source !== this.frame.contentWindow) return
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      })
      this.frame.addEventListener("load", () => {
        this.isReady = true
        this.waiting.splice(0).forEach(message => this.postMessage(message))
      })
      this.frame.srcdoc =
        `<script>self.postMessage = (send => message => send.call(parent, message, "*"))(parent.postMessage)<\/script>` +
        `<script src="${url}"><\/script>`
    }
    postMessage(message) {
      if (this.isReady) this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message }))
      else this.waiting.push(message)
    }
    terminate() { this.frame.remove() }
  }
}
