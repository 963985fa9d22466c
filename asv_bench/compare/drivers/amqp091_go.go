// amqp091-go's side of the comparison: one connection, one channel, confirms from NotifyPublish. The protocol is in __init__.py.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

type object = map[string]interface{}

type entry struct {
	kind, how string
	run       func(*job)
}

var entries = []entry{
	{"publish", "Channel.Publish", publish},
	{"confirmed", "Channel.Publish, NotifyPublish", func(j *job) { confirmed(j, nothing) }},
	{"tasks", "Channel.Publish, NotifyPublish", func(j *job) { confirmed(j, nothing) }},
	{"header", "the same, one Table", func(j *job) { confirmed(j, constant) }},
	{"headers", "the same, a Table each", func(j *job) { confirmed(j, differing) }},
	{"one-by-one", "Channel.Publish, NotifyPublish", func(j *job) { confirmed(j, nothing) }},
	{"consume", "Channel.Consume, Ack with multiple", consume},
	{"steady-confirm", "Channel.Publish, NotifyPublish", steadyConfirm},
	{"steady-consume", "Channel.Publish, NotifyPublish, Channel.Consume", steadyConsume},
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func seconds(usage syscall.Rusage) float64 {
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return seconds(usage)
}

// The most memory since clear_refs was written, where the kernel can tell (Linux: proc(5)).
func peakRssBytes() int64 {
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		words := strings.Fields(line)
		if len(words) > 1 && words[0] == "VmHWM:" {
			kib, _ := strconv.ParseInt(words[1], 10, 64)
			return kib * 1024
		}
	}
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage.Maxrss * 1024
}

// Messages that are published or consumed on a channel, and what was measured.
type job struct {
	task      map[string]string
	channel   *amqp.Channel
	queue     string
	count     int
	body      []byte
	latencies []float64
	figures   object
	wall      time.Time
	cpu       float64
}

func (j *job) number(name string) int {
	value, err := strconv.Atoi(j.task[name])
	check(err)
	return value
}

func (j *job) start() {
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	j.cpu, j.wall = cpuSeconds(), time.Now()
}

func (j *job) stop() {
	wall, cpu := time.Since(j.wall).Seconds(), cpuSeconds()-j.cpu
	j.figures = object{
		"event": "measured", "messages": j.count, "seconds": wall, "cpu_seconds": cpu, "peak_rss_bytes": peakRssBytes(),
	}
	if n := len(j.latencies); n > 0 {
		sort.Float64s(j.latencies)
		j.figures["latency_p50_s"], j.figures["latency_p99_s"] = j.latencies[(n-1)/2], j.latencies[(n*99+99)/100-1]
	}
}

func (j *job) send(body []byte, headers amqp.Table) {
	check(j.channel.Publish("", j.queue, false, false, amqp.Publishing{
		Headers: headers, ContentType: "application/octet-stream", DeliveryMode: amqp.Persistent, Body: body,
	}))
}

// Confirms in the order of the publishings. The channel takes as many as there may be, so the client never waits for it.
func (j *job) confirms(most int) chan amqp.Confirmation {
	check(j.channel.Confirm(false))
	return j.channel.NotifyPublish(make(chan amqp.Confirmation, most))
}

func settle(confirms chan amqp.Confirmation) {
	if found, open := <-confirms; !open || !found.Ack {
		panic(fmt.Errorf("publishing %d was not confirmed", found.DeliveryTag))
	}
}

func publish(j *job) {
	j.start()
	for i := 0; i < j.count; i++ {
		j.send(j.body, nil)
	}
	check(j.channel.Close())
	j.stop()
}

// The headers of a message: none, job.HEADER_TABLE, job.headers().
func nothing(int) amqp.Table { return nil }

var table = amqp.Table{"tenant": "north"}

func constant(int) amqp.Table { return table }

func differing(number int) amqp.Table {
	return amqp.Table{"tenant": "north", "attempt": int32(number % 5), "trace": fmt.Sprintf("%012d", number)}
}

func confirmed(j *job, headers func(int) amqp.Table) {
	window := j.number("window")
	confirms := j.confirms(window)
	sent, settled := 0, 0
	j.start()
	for ; sent < j.count; sent++ {
		for sent-settled >= window {
			settle(confirms)
			settled++
		}
		if window > 1 {
			j.send(j.body, headers(sent))
			continue
		}
		began := time.Now()
		j.send(j.body, nil)
		settle(confirms)
		settled++
		j.latencies = append(j.latencies, time.Since(began).Seconds())
	}
	for ; settled < sent; settled++ {
		settle(confirms)
	}
	j.stop()
	check(j.channel.Close())
}

// Calls handle with each of the job's messages, and acknowledges several at once.
func (j *job) receive(handle func([]byte)) {
	every := j.number("ack_every")
	deliveries, err := j.channel.Consume(j.queue, "", false, false, false, false, nil)
	check(err)
	for seen := 1; seen <= j.count; seen++ {
		delivery, open := <-deliveries
		if !open {
			panic(io.ErrUnexpectedEOF)
		}
		handle(delivery.Body)
		if seen%every == 0 || seen == j.count {
			check(delivery.Ack(true))
		}
	}
}

func consume(j *job) {
	size := 0
	check(j.channel.Qos(j.number("prefetch"), 0, false))
	j.start()
	j.receive(func(body []byte) { size += len(body) })
	check(j.channel.Close())
	j.stop()
	if size != j.count*len(j.body) {
		panic(fmt.Errorf("the bodies had %d bytes in all, not %d x %d", size, j.count, len(j.body)))
	}
}

// The seconds since a time of ticker.py, which has the system's clock.
func since(due []byte) float64 {
	return float64(time.Now().UnixNano()-int64(binary.LittleEndian.Uint64(due))) / 1e9
}

// Starts ticker.py. What it returns calls send for each message when it is due, with its time.
func (j *job) ticks() func(send func([]byte)) {
	command := exec.Command("sh", "-c", fmt.Sprintf("exec %s %s %d", j.task["ticker"], j.task["rate"], j.count))
	pipe, err := command.StdoutPipe()
	check(err)
	check(command.Start())
	return func(send func([]byte)) {
		buffer := make([]byte, 65536)
		for left := j.count; left > 0; {
			n, err := pipe.Read(buffer)
			check(err)
			for at := 0; at < n; at += 8 {
				send(buffer[at : at+8])
				left--
			}
		}
		check(command.Wait())
	}
}

func steadyConfirm(j *job) {
	confirms := j.confirms(j.count)
	due := make(chan []byte, j.count)
	each := j.ticks()
	j.start()
	go each(func(when []byte) {
		due <- append([]byte(nil), when...)
		j.send(j.body, nil)
	})
	for i := 0; i < j.count; i++ {
		settle(confirms)
		j.latencies = append(j.latencies, since(<-due))
	}
	j.stop()
	check(j.channel.Close())
}

func steadyConsume(j *job) {
	confirms := j.confirms(j.count)
	check(j.channel.Qos(j.number("prefetch"), 0, false))
	each := j.ticks()
	j.start()
	go each(func(when []byte) { j.send(append(append([]byte(nil), when...), j.body[len(when):]...), nil) })
	j.receive(func(body []byte) { j.latencies = append(j.latencies, since(body)) })
	for i := 0; i < j.count; i++ {
		settle(confirms)
	}
	j.stop()
	check(j.channel.Close())
}

func describe() object {
	var ways []object
	for _, e := range entries {
		ways = append(ways, object{"kind": e.kind, "how": e.how, "share": 1})
	}
	version := fmt.Sprintf("amqp091-go %s, Go %s", libraryVersion, strings.TrimPrefix(runtime.Version(), "go"))
	return object{
		"event": "described", "title": "amqp091-go", "version": version, "entries": ways, "not_possible": object{},
	}
}

// The library does not export its version; the build gives it.
var libraryVersion = "unknown"

func run(arguments []string) object {
	task := map[string]string{}
	for _, argument := range arguments {
		words := strings.SplitN(argument, "=", 2)
		task[words[0]] = words[1]
	}
	connection, err := amqp.Dial(fmt.Sprintf("amqp://guest:guest@%s:%s/", task["host"], task["port"]))
	check(err)
	defer connection.Close()
	var measured object
	for _, part := range [][2]string{{"warm_up_queue", "warm_up_count"}, {"queue", "count"}} {
		channel, err := connection.Channel()
		check(err)
		j := &job{task: task, channel: channel, queue: task[part[0]]}
		j.count, j.body = j.number(part[1]), []byte(strings.Repeat("x", j.number("size")))
		if j.count == 0 {
			continue
		}
		found := false
		for _, e := range entries {
			if e.kind == task["kind"] && e.how == task["how"] {
				e.run(j)
				found = true
			}
		}
		if !found {
			panic(fmt.Errorf("no entry %s, %s", task["kind"], task["how"]))
		}
		measured = j.figures
	}
	return measured
}

func outcome(arguments []string) (found object) {
	defer func() {
		if reason := recover(); reason != nil {
			found = object{"event": "failed", "reason": fmt.Sprint(reason)}
		}
	}()
	if arguments[0] == "describe" {
		return describe()
	}
	return run(arguments[1:])
}

func main() {
	found := outcome(os.Args[1:])
	check(json.NewEncoder(os.Stdout).Encode(found))
	if found["event"] == "failed" {
		os.Exit(1)
	}
}
