// MeshError, and how answers of a node are read.

const NEXT_STEPS = {
  NodeUnreachable: 'Check that the node runs and that the URL is right, then try again.',
  NetworkError: 'Try again.',
  RequestTimeout: 'Ask with a longer timeout.',
}
const CODES = { NodeUnreachable: 2002, NetworkError: 2001, RequestTimeout: 1003 }

/** What went wrong, in the words of the node or, where none answered, of this client. */
export class MeshError extends Error {
  constructor(message, { code = 0, name = 'UnknownError', nextStep = '', requestId, retryAfter, status } = {}) {
    super(message)
    this.code = code
    this.name = name
    this.nextStep = nextStep
    this.requestId = requestId
    this.retryAfter = retryAfter
    this.status = status
  }
}

export async function read(answer) {
  const text = await answer.text()
  let told
  try {
    told = JSON.parse(text)
  } catch {
    throw ownError('NetworkError', `This is no answer of a node: ${text.slice(0, 120)}`, answer.status)
  }
  if (!answer.ok) throw fromProblem(told, answer.status)
  return told
}

// A problem (RFC 9457) of REST, or an error frame, which calls its detail `message`.
export function fromProblem(told, status = told.status) {
  return new MeshError(told.detail ?? told.message ?? told.title ?? 'The node told an error without words.', {
    code: told.code,
    name: told.name ?? told.title,
    nextStep: told.next_step,
    requestId: told.request_id,
    retryAfter: told.retry_after,
    status,
  })
}

export function ownError(name, message, status) {
  return new MeshError(message, { code: CODES[name], name, nextStep: NEXT_STEPS[name], status })
}

export function isPassing(error) {
  return ['NetworkError', 'NodeUnreachable', 'NodeBusy', 'RateLimited'].includes(error.name)
}
