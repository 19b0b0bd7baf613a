// The playground: run a model, watch its text come, see who answered and what it cost.

import { byId, el, facts, mesh as inMesh } from './dom.js'
import { groups } from './models.js'
import { clearErrors, showError } from './notice.js'
import { say } from './words.js'

const GENERATION = 'text-generation'
const PATIENCE = 300 // seconds

export class Playground {
  #client
  #mesh
  #offers = new Map()
  #running = null

  constructor(client, mesh) {
    this.#client = client
    this.#mesh = mesh
    byId('ask').addEventListener('submit', (event) => {
      event.preventDefault()
      this.#run().catch(showError)
    })
    byId('stop').addEventListener('click', () => this.#running?.abort())
    byId('model').addEventListener('change', () => this.#fit())
    byId('text').addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('ask').requestSubmit()
    })
  }

  /** The models to choose from; the chosen one stays. */
  show() {
    const select = byId('model')
    const chosen = select.value
    this.#offers = new Map(groups(this.#mesh.offers).map(([offer]) => [reference(offer), offer]))
    const options = [...this.#offers].map(([value, offer]) => el('option', { value }, `${offer.name} ${offer.version}`))
    if (!options.length) options.push(el('option', { value: '' }, say('noModels')))
    if (select.options.length !== options.length || options.some((option, i) => option.value !== select.options[i].value)) {
      select.replaceChildren(...options)
      if (this.#offers.has(chosen)) select.value = chosen
    }
    this.#fit()
  }

  choose(offer) {
    byId('model').value = reference(offer)
    this.#fit()
    byId('playground').scrollIntoView()
    byId('text').focus({ preventScroll: true })
  }

  #fit() {
    byId('tokens-row').hidden = this.#offers.get(byId('model').value)?.task !== GENERATION
  }

  async #run() {
    if (this.#running) return
    clearErrors()
    const input = this.#input()
    const leave = (this.#running = new AbortController())
    this.#busy(true)
    for (const part of ['output', 'facts', 'receipt']) byId(part).replaceChildren()
    const request = { model: byId('model').value, input, timeout: PATIENCE, signal: leave.signal, maxFee: byId('max-fee').value.trim() || undefined }
    const stream = this.#client.stream(request)
    try {
      for await (const { text } of stream) byId('output').append(text)
      this.#showResult(stream.result)
    } catch (error) {
      byId('output').append(el('p', { class: 'hint' }, say(leave.signal.aborted ? 'stopped' : 'failed')))
      if (!leave.signal.aborted) throw error
    } finally {
      this.#running = null
      this.#busy(false)
    }
  }

  #input() {
    const text = byId('text').value
    const input = text.trimStart().startsWith('{') ? parsed(text) : { text }
    if (!byId('tokens-row').hidden) input.max_tokens ??= Number(byId('tokens').value)
    return input
  }

  #busy(busy) {
    byId('run').disabled = busy
    byId('stop').disabled = !busy
    byId('output').classList.toggle('busy', busy)
    byId('output').setAttribute('aria-busy', String(busy))
  }

  #showResult(result) {
    const { output } = result
    if (typeof output.text !== 'string') byId('output').replaceChildren(...told(output))
    else if (!byId('output').textContent) byId('output').textContent = output.text
    byId('facts').replaceChildren(...facts([
      [say('provider'), this.#mesh.isOwn(result.provider) ? say('thisOne') : result.provider],
      [say('cost'), inMesh(result.fee, say('free'))],
      [say('latency'), `${Math.round(result.latency_ms)} ms`],
      [say('tokens'), `${result.usage.input_tokens} → ${result.usage.output_tokens}`],
      [say('request'), el('code', {}, result.request_id)],
    ]))
    const ask = () => this.#showReceipt(result.request_id).catch(showError)
    byId('receipt').replaceChildren(el('button', { type: 'button', onclick: ask }, say('showReceipt')))
  }

  async #showReceipt(id) {
    const told = await this.#client.receipt(id).catch((error) => {
      if (error.status === 404) return { receipts: [] }
      throw error
    })
    const rows = told.receipts.flatMap(({ charge }) => [
      [say('genuine'), say(charge.genuine ? 'genuineYes' : 'genuineNo'), charge.genuine ? '' : 'warn'],
      [say('price'), inMesh(charge.price, say('free'))],
      [say('signedBy'), el('code', {}, charge.provider)],
      [say('issued'), charge.issued],
      ['BLAKE3', el('code', {}, charge.output_digest)],
    ])
    const shown = rows.length ? el('dl', { class: 'facts' }, ...facts(rows)) : el('p', { class: 'hint' }, say('noReceipt'))
    byId('receipt').replaceChildren(shown)
  }
}

const reference = (offer) => `${offer.name}@${offer.model_id}`

function parsed(text) {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw Object.assign(new Error(say('badJson', { error: error.message })), { name: 'ValidationFailed', code: 1004 })
  }
}

/** A label with its score, or whatever the output is, as JSON. */
function told(output) {
  const { label, score } = output
  if (typeof label !== 'string' || typeof score !== 'number') return [el('pre', {}, JSON.stringify(output, null, 1))]
  const percent = `${(100 * score).toFixed(1)} %`
  return [
    el('div', { class: 'label' }, label),
    el('meter', { min: 0, max: 1, value: score, 'aria-label': label }),
    el('div', { class: 'hint' }, percent),
  ]
}
