// Deploying a model: drop a file or choose one, say what it is, watch it go.

import { brief, byId } from './dom.js'
import { clearErrors, showError } from './notice.js'
import { say } from './words.js'

export class Deployment {
  #client
  #onDone
  #file = null
  #leave = null

  constructor(client, onDone) {
    this.#client = client
    this.#onDone = onDone
    const drop = byId('drop')
    for (const name of ['dragover', 'drop']) addEventListener(name, (event) => event.preventDefault()) // a miss must not leave the page
    byId('file').addEventListener('change', ({ target }) => {
      this.#choose(target.files)
      target.value = '' // the same file may be chosen again
    })
    byId('cancel').addEventListener('click', () => this.#leave?.abort())
    byId('bring').addEventListener('submit', (event) => {
      event.preventDefault()
      this.#send().catch(showError)
    })
    for (const [name, over] of [['dragenter', true], ['dragover', true], ['dragleave', false], ['drop', false]]) {
      drop.addEventListener(name, (event) => {
        event.preventDefault()
        drop.classList.toggle('over', over)
        if (name === 'drop') this.#choose(event.dataTransfer.files)
      })
    }
  }

  #choose(files) {
    if (files.length > 1) return this.#tell(say('oneFile'))
    if (!files.length) return undefined
    this.#file = files[0]
    byId('file').required = false
    byId('chosen').textContent = `${this.#file.name} (${size(this.#file.size)})`
    byId('name').value ||= this.#file.name.replace(/\.(onnx|zip|tar)$/i, '')
    return this.#tell('')
  }

  async #send() {
    if (this.#leave || !this.#file) return
    const leave = (this.#leave = new AbortController())
    const metadata = Object.fromEntries(['name', 'version', 'fee', 'description'].map((id) => [id, byId(id).value.trim()]))
    clearErrors()
    this.#busy(true)
    try {
      const id = await this.#client.deploy(this.#file, metadata, { signal: leave.signal, onProgress: (sent, total) => this.#progress(sent, total) })
      this.#tell(say('served', { name: metadata.name, id: brief(id) }))
      this.#onDone()
    } catch (error) {
      this.#tell(leave.signal.aborted ? say('cancelled') : '')
      if (!leave.signal.aborted) throw error
    } finally {
      this.#leave = null
      this.#busy(false)
    }
  }

  #progress(sent, total) {
    byId('progress').value = sent / Math.max(1, total)
    this.#tell(sent < total ? say('sending', { percent: Math.floor((100 * sent) / total) }) : say('checking'))
  }

  #busy(busy) {
    byId('send').disabled = busy
    byId('cancel').disabled = !busy
    byId('progress').hidden = !busy
    byId('progress').value = 0
  }

  #tell(text) {
    byId('deployed').textContent = text
  }
}

function size(bytes) {
  const [unit, name] = bytes >= 1e9 ? [1e9, 'GB'] : bytes >= 1e6 ? [1e6, 'MB'] : [1e3, 'kB']
  return `${(bytes / unit).toFixed(1)} ${name}`
}
