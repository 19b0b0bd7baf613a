// English and Chinese: what the page says.  `data-say` in the HTML names a word of these tables.

const ENGLISH = {
  skip: 'Skip to the content', sections: 'Sections', playground: 'Playground', models: 'Models', peers: 'Peers',
  activity: 'Activity', money: 'Money', deploy: 'Deploy', docs: 'API', forgetKey: 'Forget key', other: '中文',
  light: 'Light', dark: 'Dark', connected: 'live', waiting: 'reconnecting', thisNode: 'This node', copy: 'Copy', copied: 'Copied',
  version: 'Version', uptime: 'Running for', own: 'Own models', stake: 'Stake', earnings: 'Earnings', balance: 'Balance',
  reachable: 'Reachable from outside', yes: 'yes', no: 'no', unknown: 'not known yet', sandbox: 'Sandbox', swarm: 'Swarm', alarm: 'Ledger alarm',
  fetching: 'Fetching', model: 'Model', input: 'Input', inputHint: 'A text, or values by name as JSON: {"x": [[1, 2]]}',
  maxFee: 'At most (MESH)', maxTokens: 'At most (tokens)', run: 'Run', stop: 'Stop', answer: 'Answer', noAnswer: 'What you run shows here.',
  stopped: 'Stopped.', failed: 'This failed.', provider: 'Provider', thisOne: 'this node', cost: 'Cost', request: 'Request', tokens: 'Tokens', showReceipt: 'Show receipt',
  genuine: 'Signature', genuineYes: 'genuine', genuineNo: 'NOT genuine', signedBy: 'Signed by', issued: 'Issued', price: 'Price', free: 'free',
  noReceipt: 'No receipt was kept for this request.', modelsOnMesh: 'Models on the mesh', filter: 'Filter by name', name: 'Name', task: 'Task',
  providers: 'Providers', latency: 'Latency', try: 'Try', here: 'here', noModels: 'No model is on offer yet. Deploy one below.', noMatch: 'No model of that name.',
  noPeers: 'No other node yet. Make an invite with: llmesh invite', morePeers: 'more', state_connected: 'connected', state_known: 'known', state_down: 'lost',
  peerHint: 'Choose a node to see more of it.', graphOf: 'This node and its peers', sinceOpen: 'Since this page was opened.',
  requests: 'Requests a minute', latencyMs: 'Latency (ms)', queue: 'Requests in the models', minutesAgo: '{minutes} min ago', events: 'Live events', nothingYet: 'Nothing yet.',
  ev_answered: '{model} answered by {provider} in {ms} ms, {fee}', ev_served: 'Served {model} to a peer in {ms} ms, {fee}', ev_failed: '{model} failed: {error}',
  ev_new: 'New peer {peer}', ev_up: 'Connected to {peer}', ev_down: 'Lost {peer}', ev_appeared: '{name} is offered by {provider}: {fee}', ev_changed: '{name} of {provider} has new terms: {fee}',
  ev_gone: '{name} of {provider} is gone', ev_transfer: 'Fetching {model}: {percent} %', ev_deployed: 'This node serves {name}: {fee}', ev_dropped: '{count} events were missed',
  earned: 'Earned', claimed: 'Earned and claimed', spent: 'Spent', inDays: '{earned} earned and {spent} spent in 14 days', held: 'In doubt', channels: 'Channels', noWallet: 'This key may not see the node\'s money; a key with the scope wallet may.',
  deployTitle: 'Deploy a model', drop: 'Drop a model here, or choose a file', dropHint: 'An .onnx file, or a .zip or .tar of a folder', fee: 'Fee (MESH)', description: 'Description', cancel: 'Cancel',
  sending: 'Sending: {percent} %', checking: 'Sent; the node checks and loads it.', served: '{name} is served now as {id}', cancelled: 'Cancelled; nothing has changed.', oneFile: 'Drop one file at a time.',
  keyTitle: 'This node asks for a key', keyWhence: 'Its owner makes one with: llmesh keys create --name NAME', key: 'Key', keyHint: 'It is kept in this tab only, until you close it.', enter: 'Enter', dismiss: 'Dismiss', code: 'code', badJson: 'The input begins like JSON but is none: {error}', fault: 'The page failed',
}

const CHINESE = {
  skip: '跳到正文', sections: '各部分', playground: '试用', models: '模型', peers: '节点', activity: '动态', money: '资金', deploy: '部署', docs: '接口', forgetKey: '忘记密钥', other: 'English',
  light: '浅色', dark: '深色', connected: '实时', waiting: '重新连接中', thisNode: '本节点', copy: '复制', copied: '已复制',
  version: '版本', uptime: '已运行', own: '本机模型', stake: '质押', earnings: '收益', balance: '余额',
  reachable: '外部可达', yes: '是', no: '否', unknown: '尚不清楚', sandbox: '沙箱', swarm: '群', alarm: '账本警报',
  fetching: '正在获取', model: '模型', input: '输入', inputHint: '一段文字，或按名称给出的 JSON 值：{"x": [[1, 2]]}',
  maxFee: '最高费用（MESH）', maxTokens: '最多词元数', run: '运行', stop: '停止', answer: '回答', noAnswer: '运行结果会显示在这里。',
  stopped: '已停止。', failed: '失败了。', provider: '提供者', thisOne: '本节点', cost: '费用', request: '请求', tokens: '词元', showReceipt: '查看收据',
  genuine: '签名', genuineYes: '真实', genuineNo: '不真实', signedBy: '签名者', issued: '签发时间', price: '价格', free: '免费',
  noReceipt: '该请求没有保存收据。', modelsOnMesh: '网格中的模型', filter: '按名称筛选', name: '名称', task: '任务',
  providers: '提供者', latency: '延迟', try: '试用', here: '本机', noModels: '还没有模型。可在下方部署一个。', noMatch: '没有这个名称的模型。',
  noPeers: '还没有其他节点。用此命令生成邀请：llmesh invite', morePeers: '个未画出', state_connected: '已连接', state_known: '已知', state_down: '已失联',
  peerHint: '选择一个节点以查看详情。', graphOf: '本节点及其他节点', sinceOpen: '自打开本页以来。',
  requests: '每分钟请求数', latencyMs: '延迟（毫秒）', queue: '模型中的请求数', minutesAgo: '{minutes} 分钟前', events: '实时事件', nothingYet: '暂无。',
  ev_answered: '{model} 由 {provider} 回答，用时 {ms} 毫秒，{fee}', ev_served: '为其他节点运行 {model}，用时 {ms} 毫秒，{fee}', ev_failed: '{model} 失败：{error}',
  ev_new: '发现新节点 {peer}', ev_up: '已连接 {peer}', ev_down: '与 {peer} 断开', ev_appeared: '{provider} 提供 {name}，{fee}', ev_changed: '{provider} 的 {name} 有新条件：{fee}',
  ev_gone: '{provider} 的 {name} 已撤下', ev_transfer: '正在获取 {model}：{percent} %', ev_deployed: '本节点开始提供 {name}，{fee}', ev_dropped: '漏掉了 {count} 个事件',
  earned: '收入', claimed: '已领取的收入', spent: '支出', inDays: '14 天内收入 {earned}，支出 {spent}', held: '待定', channels: '通道', noWallet: '此密钥不能查看本节点的资金；需要带 wallet 权限的密钥。',
  deployTitle: '部署模型', drop: '把模型拖到这里，或选择文件', dropHint: '.onnx 文件，或文件夹的 .zip、.tar', fee: '费用（MESH）', description: '说明', cancel: '取消',
  sending: '正在发送：{percent} %', checking: '已发送；节点正在检查并加载。', served: '{name} 已上线，编号 {id}', cancelled: '已取消；没有任何改变。', oneFile: '一次只能放一个文件。',
  keyTitle: '本节点需要密钥', keyWhence: '由节点的主人用此命令生成：llmesh keys create --name NAME', key: '密钥', keyHint: '只保存在此标签页中，关闭即失效。', enter: '进入', dismiss: '关闭', code: '代码', badJson: '输入以 JSON 开头，但不是有效的 JSON：{error}', fault: '页面出错',
}

// What to do about an error, by its code; in English the node says it.
const STEPS = {
  1001: '看看有哪些模型可用，或提高最高费用。', 1002: '质押更多（--stake）。', 1003: '给更长的时间再试。', 1004: '按提示改正后再试。',
  2001: '再试一次。', 2002: '确认节点在运行，稍后再试。', 2003: '稍等片刻再试。', 2004: '再试一次；仍不行就检查模型。',
  3001: '取得更多 MESH，或等到次日的预算。', 3002: '不会有损失，也不会重复付款；稍后再试。', 4001: '使用有权限的密钥。', 4002: '稍等片刻再试。',
  4003: '先查看当前状态。', 4004: '一次少发一些。', 4005: '看看这里有什么。',
}

// Names that the node gives; in English they stay as they are.
const NAMES = {
  'text-classification': '文本分类', 'token-classification': '词元分类', 'text-generation': '文本生成', embeddings: '文本向量', 'raw-tensors': '张量',
  none: '无', limits: '资源限额', filtered: '系统调用过滤', confined: '完全隔离',
}

const TABLES = { en: ENGLISH, zh: CHINESE }
let table = ENGLISH

export const languages = Object.keys(TABLES)

export function setLanguage(language) {
  table = TABLES[language] ?? ENGLISH
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en'
  for (const [attribute, set] of [
    ['data-say', (element, text) => (element.textContent = text)],
    ['data-say-label', (element, text) => element.setAttribute('aria-label', text)],
    ['data-say-placeholder', (element, text) => element.setAttribute('placeholder', text)],
  ]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) set(element, say(element.getAttribute(attribute)))
  }
}

/** A word or sentence; {names} in it are replaced by values. */
export function say(word, values = {}) {
  return table[word].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}

/** A name that the node gives, in the reader's language. */
export const translated = (name) => (table === CHINESE && Object.hasOwn(NAMES, name ?? '') ? NAMES[name] : name)

export function nextStep(error) {
  return (table === CHINESE && STEPS[error.code]) || error.nextStep
}
