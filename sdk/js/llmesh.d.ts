/** Money is in MESH, as the node's JSON has it: at most six decimals, exact up to nine thousand million. */
export type Mesh = number

export interface Options {
  /** Gives the call up; what runs on the mesh for it is stopped. */
  signal?: AbortSignal
}

export interface Creating extends Options {
  /** Sent again with the same request, it gives the first answer again and does nothing. */
  idempotencyKey?: string
}

export interface InferenceRequest extends Creating {
  /** `name`, `name:version` or `name@id`. */
  model: string
  /** Values by name; a text means `{ text }`. */
  input: string | Record<string, unknown>
  /** Seconds for the whole; 30 if left out. */
  timeout?: number
  /** MESH; a string is exact. */
  maxFee?: number | string
  sort?: 'price' | 'latency' | 'throughput'
  minStake?: number | string
  providers?: { only?: string[]; ignore?: string[] }
}

export interface Skipped {
  peer: string
  code: number
  reason: string
}

export interface InferenceResult {
  request_id: string
  model: string
  model_id: string
  output: Record<string, any>
  fee: Mesh
  provider: string
  latency_ms: number
  usage: { input_tokens: number; output_tokens: number; compute_ms: number }
  attempts: number
  skipped: Skipped[]
}

export interface Plan {
  request_id: string
  model: string
  model_id: string
  fee: Mesh
  providers: { provider: string; fee: Mesh; stake: Mesh }[]
  skipped: Skipped[]
}

export interface ModelOffer {
  name: string
  version: string
  model_id: string
  task: string
  fee: Mesh
  provider: string
  stake: Mesh
  description: string
  licence: string
  variant: string
  execution: string
}

export interface Peer {
  peer_id: string
  state: 'connected' | 'known' | 'down'
  addresses: string[]
  latency_ms: number | null
  models: number
  stake: Mesh
}

export interface Transfer {
  model_id: string
  done: number
  total: number
  rate: number
  sources: string[]
}

export interface Status {
  node_id: string
  version: string
  peers: number
  models: number
  stake: Mesh
  earnings: Mesh
  addresses: string[]
  reachable: boolean | null
  uptime: number
  sandbox: string
  providers: string[]
  workers: {
    model_id: string
    sandbox: string
    provider: string
    batch: number
    resident: number
    calls: number
  }[]
  transfers: Transfer[]
  swarm: {
    id: string
    account: string
    issuer: boolean
    balance: Mesh
    entries: number
    followed: number
    alarm: string
    accused: number
  } | null
}

export interface Fees {
  /** A day (UTC), as 2026-01-31. */
  day: string
  model_id: string
  model: string
  fees: Mesh
  count: number
}

export interface Wallet {
  account: string
  chain: number
  balance: Mesh
  stake: Mesh
  unbonding: Mesh
  free_at: number
  earned: Mesh
  unknown: Mesh
  channels: Record<string, any>[]
  spending: Fees[]
  earnings: Fees[]
  /** To other accounts, the latest first. */
  sent: {
    account: string
    amount: Mesh
    since: string
    state: 'waiting' | 'done' | 'dead'
    refused: string
  }[]
  /** Providers that were caught cheating, the latest first. */
  accused: {
    provider: string
    offence: 'equivocation' | 'overcharge'
    request_id: string
    attempt: number
    since: string
    state: 'waiting' | 'done' | 'dead'
    refused: string
  }[]
}

export interface Receipts {
  request_id: string
  chain: { id: number; contract: string }
  /** What each says, and its signed bytes in hex. */
  receipts: { id: string; charge: Record<string, any>; signed: string }[]
}

export type EventName = 'inference' | 'peer_update' | 'model_announce' | 'transfer' | 'model_deployed'

export interface MeshEvent {
  event: EventName
  data: Record<string, any>
  /** Events lost before this one, as they were read too slowly. */
  dropped: number
}

export interface Metadata {
  name: string
  version?: string
  description?: string
  /** MESH for one inference. */
  fee?: number | string
}

export interface Webhook {
  url: string
  events: ('inference_complete' | 'model_deployed')[]
  /** Shown only when it is new. */
  secret?: string
  id?: string
  created?: string
}

export interface Webhooks {
  list(options?: Options): Promise<Webhook[]>
  create(webhook: Webhook, options?: Creating): Promise<Webhook>
  get(id: string, options?: Options): Promise<Webhook>
  remove(id: string, options?: Options): Promise<void>
  ping(id: string, options?: Options): Promise<Record<string, any>>
  rotateSecret(id: string, secret?: string, options?: Options): Promise<Webhook>
  deliveries(id: string, options?: Options & { state?: string; limit?: number }): Promise<Record<string, any>[]>
  replay(delivery: string, options?: Options): Promise<Record<string, any>>
}

/** What went wrong: `code` and `name` are of the table of errors; `nextStep` says what to do. */
export class MeshError extends Error {
  readonly code: number
  readonly nextStep: string
  readonly requestId?: string
  /** Seconds after which trying again may help. */
  readonly retryAfter?: number
  /** HTTP's status, where it was told by one. */
  readonly status?: number
}

/** The pieces of an answer's text.  Leaving the loop or `return()` stops the work, at the provider too. */
export interface InferenceStream extends AsyncIterableIterator<{ index: number; text: string }> {
  /** Known once a provider has taken the request up. */
  readonly requestId?: string
  /** The whole answer, known at the end. */
  readonly result?: InferenceResult
}

/**
 * A client of one node.  `url` is by default where the page came from, LLMESH_URL in Node, or
 * http://localhost:8080.  Every call rejects with a MeshError that the node tells, or with
 * NodeUnreachable, NetworkError or RequestTimeout of its own; a call given up by its signal rejects
 * with the signal's reason.
 */
export class MeshClient {
  constructor(options?: { url?: string; key?: string })
  readonly url: string
  status(options?: Options): Promise<Status>
  /** Every offer that the node knows of, up to a thousand. */
  models(options?: Options): Promise<ModelOffer[]>
  searchModels(
    query?: Options & { name?: string; maxFee?: number | string; limit?: number },
  ): Promise<ModelOffer[]>
  model(id: string, options?: Options): Promise<{ model_id: string; own: boolean; offers: ModelOffer[] }>
  /** Have the node serve one of its own models no longer. */
  removeModel(id: string, options?: Options): Promise<void>
  peers(options?: Options & { limit?: number }): Promise<Peer[]>
  inference(request: InferenceRequest): Promise<InferenceResult>
  /** Who would serve such an inference, in order, at what fee; nothing is run. */
  plan(request: InferenceRequest): Promise<Plan>
  /** Up to 1000 at once; a request that failed has its MeshError in the place of a result. */
  batch(requests: InferenceRequest[], options?: Creating): Promise<(InferenceResult | MeshError)[]>
  stream(request: InferenceRequest): InferenceStream
  /** Events of these names, of all without names.  Connects again by itself, telling `onState`. */
  subscribe(
    names?: EventName[],
    options?: Options & { onState?: (state: 'connected' | 'waiting') => void },
  ): AsyncIterableIterator<MeshEvent>
  /** Bring the node an .onnx file, or a .zip or .tar of a folder; gives the model id. */
  deploy(
    data: Blob | ArrayBuffer | Uint8Array | ReadableStream<Uint8Array>,
    metadata: Metadata,
    options?: Creating & { onProgress?: (sent: number, total?: number) => void },
  ): Promise<string>
  /** What providers signed for a request, to be checked by anyone. */
  receipt(requestId: string, options?: Options): Promise<Receipts>
  wallet(options?: Options & { days?: number }): Promise<Wallet>
  readonly webhooks: Webhooks
}
