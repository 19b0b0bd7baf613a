// What the node knows, fetched now and then: seldom enough to stay far below a key's calls an hour.

const EVERY = { status: 15_000, offers: 120_000, peers: 120_000, wallet: 120_000 }
const SOONEST = 20_000 // between two fetches of one thing, however much happens

export class Mesh {
  status = null
  offers = []
  peers = []
  wallet = null
  walletError = null
  latencies = new Map() // milliseconds of the latest answer by model id

  #client
  #listeners = new Set()
  #onError
  #fetched = {}
  #due = {}

  constructor(client, onError) {
    this.#client = client
    this.#onError = onError
  }

  /** Calls back after every change with the name of what has changed. */
  onChange(listener) {
    this.#listeners.add(listener)
  }

  start() {
    for (const what of Object.keys(EVERY)) this.refresh(what)
    document.addEventListener('visibilitychange', () => document.hidden || this.refresh('status'))
  }

  async refresh(what) {
    clearTimeout(this.#due[what])
    let pause = EVERY[what]
    this.#fetched[what] = Date.now()
    if (!document.hidden || !this.status) {
      try {
        this[what] = await this.#fetch(what)
        if (what === 'wallet') this.walletError = null
      } catch (error) {
        pause = Math.max(pause, (error.retryAfter ?? 0) * 1000)
        if (what === 'wallet' && error.code === 4001) this.walletError = error
        else this.#onError(error)
      }
      this.#tell(what)
    }
    clearTimeout(this.#due[what])
    this.#due[what] = setTimeout(() => this.refresh(what), pause)
  }

  /** Fetch it again before its time, as something has happened to it. */
  soon(what) {
    const wait = Math.max(300, this.#fetched[what] + SOONEST - Date.now())
    clearTimeout(this.#due[what])
    this.#due[what] = setTimeout(() => this.refresh(what), wait)
  }

  /** What an event changes. */
  note({ event, data }) {
    if (event === 'inference') {
      if (data.model_id && !data.error) this.latencies.set(data.model_id, data.latency_ms)
      if (data.fee > 0) this.soon('wallet')
      this.#tell('offers')
    }
    if (event === 'peer_update') this.soon('peers')
    if (event === 'model_announce' || event === 'model_deployed') this.soon('offers')
  }

  isOwn(peer) {
    return peer === this.status?.node_id
  }

  #fetch(what) {
    const client = this.#client
    const fetchers = {
      status: () => client.status(),
      offers: () => client.models(),
      peers: () => client.peers({ limit: 200 }),
      wallet: () => client.wallet({ days: 14 }),
    }
    return fetchers[what]()
  }

  #tell(what) {
    for (const listener of this.#listeners) listener(what)
  }
}
