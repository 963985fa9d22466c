// amqplib's side of the comparison, on Node.js: one connection, one channel, the promise API. The protocol is in __init__.py.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const amqplib = require('amqplib');

const ENTRIES = {
  publish: ['Channel.publish, waits for drain', publish],
  confirmed: ['ConfirmChannel.publish with callbacks', confirmed],
  'one-by-one': ['ConfirmChannel.publish with a callback', oneByOne],
  consume: ['consume with a callback, ack with allUpTo', consume],
};
const OPTIONS = { contentType: 'application/octet-stream', deliveryMode: 2 };
// Messages that a channel buffers before publish() asks to wait; the default is 16.
const HIGH_WATER_MARK = 256;

const seconds = () => Number(process.hrtime.bigint()) / 1e9;

// The most memory since reset_peak_rss(), where the kernel can tell (Linux: proc(5)).
function resetPeakRss() {
  try { fs.writeFileSync('/proc/self/clear_refs', '5'); } catch { /* not Linux */ }
}

function peakRssBytes() {
  try {
    return 1024 * Number(/^VmHWM:\s+(\d+)/m.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]);
  } catch {
    return 1024 * process.resourceUsage().maxRSS;
  }
}

class Job {
  constructor(task, queue, count) {
    Object.assign(this, { task, queue, count, body: Buffer.alloc(task.size, 'x'), latencies: [], figures: null });
  }

  start() {
    resetPeakRss();
    this.cpu = process.cpuUsage();
    this.wall = seconds();
  }

  stop() {
    const wall = seconds() - this.wall;
    const cpu = process.cpuUsage(this.cpu);
    this.figures = {
      messages: this.count,
      seconds: wall,
      cpu_seconds: (cpu.user + cpu.system) / 1e6,
      peak_rss_bytes: peakRssBytes(),
    };
    if (this.latencies.length) {
      const ordered = Float64Array.from(this.latencies).sort();
      this.figures.latency_p50_s = ordered[(ordered.length - 1) >> 1];
      this.figures.latency_p99_s = ordered[Math.ceil((ordered.length * 99) / 100) - 1];
    }
  }

  check(messages, size) {
    if (messages !== this.count) throw new Error(`${messages} messages were counted where ${this.count} were due`);
    if (size !== undefined && size !== this.count * this.task.size) {
      throw new Error(`the bodies had ${size} bytes in all, not ${this.count} x ${this.task.size}`);
    }
  }
}

async function publish(connection, job) {
  const channel = await connection.createChannel({ highWaterMark: HIGH_WATER_MARK });
  job.start();
  for (let i = 0; i < job.count; i++) {
    if (!channel.publish('', job.queue, job.body, OPTIONS)) {
      await new Promise((resolve) => channel.once('drain', resolve));
    }
  }
  await channel.close();
  job.stop();
}

async function confirmed(connection, job) {
  const channel = await connection.createConfirmChannel({ highWaterMark: HIGH_WATER_MARK });
  let sent = 0;
  let settled = 0;
  job.start();
  await new Promise((resolve, reject) => {
    function onConfirm(error) {
      if (error) return reject(error);
      settled++;
      if (settled === job.count) resolve();
      else if (sent < job.count) send();
    }
    function send() {
      sent++;
      channel.publish('', job.queue, job.body, OPTIONS, onConfirm);
    }
    while (sent < job.count && sent < job.task.window) send();
  });
  job.stop();
  job.check(settled);
  await channel.close();
}

async function oneByOne(connection, job) {
  const channel = await connection.createConfirmChannel();
  job.start();
  await new Promise((resolve, reject) => {
    let start;
    function onConfirm(error) {
      if (error) return reject(error);
      job.latencies.push(seconds() - start);
      if (job.latencies.length === job.count) resolve();
      else send();
    }
    function send() {
      start = seconds();
      channel.publish('', job.queue, job.body, OPTIONS, onConfirm);
    }
    send();
  });
  job.stop();
  await channel.close();
}

async function consume(connection, job) {
  const channel = await connection.createChannel();
  await channel.prefetch(job.task.prefetch);
  const { count } = job;
  const ackEvery = job.task.ack_every;
  let seen = 0;
  let size = 0;
  job.start();
  await new Promise((resolve, reject) => {
    function onMessage(message) {
      if (message === null) return reject(new Error('the broker cancelled the consumer'));
      seen++;
      size += message.content.length;
      if (seen % ackEvery === 0 || seen === count) {
        channel.ack(message, true);
        if (seen === count) resolve();
      }
    }
    channel.consume(job.queue, onMessage).catch(reject);
  });
  await channel.close();
  job.stop();
  job.check(seen, size);
}

function parse(words) {
  const task = {};
  for (const word of words) {
    const [name, value] = word.split('=', 2);
    task[name] = /^\d+$/.test(value) ? Number(value) : value;
  }
  return task;
}

async function run(task) {
  const entry = ENTRIES[task.kind];
  if (!entry || entry[0] !== task.how) throw new Error(`no entry ${task.kind}, ${task.how}`);
  const connection = await amqplib.connect(
    { hostname: task.host, port: task.port, heartbeat: 0 },
    { noDelay: true },
  );
  if (task.warm_up_count) await entry[1](connection, new Job(task, task.warm_up_queue, task.warm_up_count));
  const job = new Job(task, task.queue, task.count);
  await entry[1](connection, job);
  await connection.close();
  return { event: 'measured', ...job.figures };
}

function describe() {
  const { version } = JSON.parse(fs.readFileSync(path.join(path.dirname(require.resolve('amqplib')), 'package.json')));
  return {
    event: 'described',
    title: 'amqplib',
    version: `amqplib ${version}, Node.js ${process.version.slice(1)}`,
    entries: Object.entries(ENTRIES).map(([kind, [how]]) => ({ kind, how, share: 1 })),
    not_possible: {},
  };
}

async function main([command, ...words]) {
  let outcome;
  try {
    outcome = command === 'describe' ? describe() : await run(parse(words));
  } catch (error) {
    outcome = { event: 'failed', reason: `${error.name}: ${error.message}`.slice(0, 500) };
    process.exitCode = 1;
  }
  // A connection that failed may be open still; nothing is waited for.
  fs.writeSync(1, `${JSON.stringify(outcome)}\n`);
  process.exit();
}

main(process.argv.slice(2));
