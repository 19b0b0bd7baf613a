// What a client iterates over: pieces of an answer, and events.

const WAITING = 1_024 // events that wait for a slow reader; then the oldest go

// An async iterator whose `return` also ends what its generator waits for.
export class Leaving {
  #leave = new AbortController()
  #left = false
  #items

  constructor(start, signal) {
    const leave = this.#leave
    if (signal?.aborted) leave.abort(signal.reason)
    signal?.addEventListener('abort', () => leave.abort(signal.reason), { once: true, signal: leave.signal })
    this.#items = start(leave)
  }

  [Symbol.asyncIterator]() {
    return this
  }

  async next() {
    try {
      return await this.#items.next()
    } catch (error) {
      if (this.#left) return { done: true, value: undefined }
      throw error
    }
  }

  async return(value) {
    this.#left = true
    this.#leave.abort()
    await this.#items.return().catch(() => {})
    return { done: true, value }
  }
}

export class InferenceStream extends Leaving {
  requestId = undefined
  result = undefined

  async next() {
    for (;;) {
      const { done, value: frame } = await super.next()
      if (done) return { done, value: undefined }
      if (frame.type === 'accepted') this.requestId = frame.request_id
      if (frame.type === 'completed') {
        const { type, id, ...result } = frame
        this.result = result
      }
      if (frame.type === 'chunk') return { done: false, value: { index: frame.index, text: frame.text } }
    }
  }
}

// Frames between a socket, which does not wait, and a reader, for whom they wait.
export class Frames {
  any = false
  #waiting = []
  #lost = 0
  #error
  #wake

  put(frame) {
    this.any = true
    if (this.#waiting.push(frame) > WAITING) {
      this.#waiting.shift()
      this.#lost += 1
    }
    this.#wake?.()
  }

  end(error) {
    this.#error = error
    this.#wake?.()
  }

  async next() {
    while (!this.#waiting.length) {
      if (this.#error) throw this.#error
      await new Promise((resolve) => (this.#wake = resolve))
    }
    const frame = this.#waiting.shift()
    if (frame.type !== 'event') return frame
    const dropped = frame.dropped + this.#lost
    this.#lost = 0
    return { ...frame, dropped }
  }
}

export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true })
  })
}

// The data of each event of a stream (HTML standard, 9.2.6).
export async function* serverSent(body) {
  let data = []
  for await (const line of lines(body)) {
    if (line === '' && data.length) {
      yield data.join('\n')
      data = []
    } else if (line.startsWith('data:')) {
      data.push(line.slice(line[5] === ' ' ? 6 : 5))
    }
  }
}

async function* lines(body) {
  const reader = body.getReader()
  const decoder = new TextDecoder()
  let text = ''
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      text += decoder.decode(value, { stream: true })
      const whole = text.split(/\r\n|\n|\r(?!$)/)
      text = whole.pop()
      yield* whole
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}
