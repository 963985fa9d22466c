/* rabbitmq-c's side of the comparison: one connection, the library's plain functions. The protocol is in __init__.py. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const char MULTIPLE[] = "multiple basic.ack";
static const char EACH[] = "basic.ack for each";
static const char PUBLISH[] = "amqp_basic_publish";
static const char CONFIRMED[] = "amqp_basic_publish, amqp_simple_wait_frame";
static const char HEADER[] = "the same with an amqp_table_t";
static const char HEADERS[] = "the same with an amqp_table_t each";
static const char STEADY_CONFIRM[] = "poll, amqp_simple_wait_frame_noblock";
static const char STEADY_CONSUME[] = "poll, amqp_simple_wait_frame_noblock, amqp_read_message";
/* Room for the text of a number. */
enum { TRACE_SIZE = 24 };

static int arguments_count;
static char **arguments;

static void die(const char *what) {
    printf("{\"event\": \"failed\", \"reason\": \"%s\"}\n", what);
    exit(1);
}

/* What failed, with the broker's or the library's own words. */
static void die_of(const char *what, amqp_rpc_reply_t reply) {
    char text[512];
    const char *why = "the broker closed the channel or the connection";
    if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION) why = amqp_error_string2(reply.library_error);
    snprintf(text, sizeof text, "%s: %s", what, why);
    die(text);
}

static void check(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) die_of(what, reply);
}

static void check_status(int status, const char *what) {
    char text[512];
    if (status == AMQP_STATUS_OK) return;
    snprintf(text, sizeof text, "%s: %s", what, amqp_error_string2(status));
    die(text);
}

static const char *argument(const char *name) {
    size_t length = strlen(name);
    for (int i = 0; i < arguments_count; i++)
        if (strncmp(arguments[i], name, length) == 0 && arguments[i][length] == '=') return arguments[i] + length + 1;
    die("an argument is missing");
    return NULL;
}

static long number(const char *name) { return atol(argument(name)); }

static double wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_utime.tv_usec / 1e6 + r.ru_stime.tv_sec + r.ru_stime.tv_usec / 1e6;
}

/* Linux, proc(5): the peak starts over. */
static void reset_peak_rss(void) {
    int file = open("/proc/self/clear_refs", O_WRONLY);
    if (file < 0) return;
    if (write(file, "5", 1) < 0) perror("clear_refs");
    close(file);
}

/* Not ru_maxrss on Linux: it begins with the memory of the process that started this one. */
static long peak_rss_bytes(void) {
    char line[256];
    long kib = -1;
    struct rusage r;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1) break;
    if (file) fclose(file);
    if (kib >= 0) return kib * 1024;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_maxrss * 1024;
}

/* What was measured: the last job's. */
static double began_wall, began_cpu, took_wall, took_cpu;
static double *latencies;
static long peak;

static void start(void) {
    reset_peak_rss();
    began_cpu = cpu();
    began_wall = wall();
}

static void stop(void) {
    took_wall = wall() - began_wall;
    took_cpu = cpu() - began_cpu;
    peak = peak_rss_bytes();
}

/* Publishings that are settled: all up to `settled`, and those marked beyond it. */
static uint64_t settled;
static char *marked;

static void confirm(const amqp_frame_t *frame) {
    if (frame->frame_type != AMQP_FRAME_METHOD || frame->payload.method.id != AMQP_BASIC_ACK_METHOD)
        die("the broker sent something else where basic.ack was due");
    amqp_basic_ack_t *ack = frame->payload.method.decoded;
    if (!ack->multiple)
        marked[ack->delivery_tag] = 1;
    else if (ack->delivery_tag > settled)
        settled = ack->delivery_tag;
    while (marked[settled + 1]) settled++;
}

static void wait_for_confirm(amqp_connection_state_t c) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(c);
    check_status(amqp_simple_wait_frame(c, &frame), "reading a confirm");
    confirm(&frame);
}

static void open_channel(amqp_connection_state_t c, int channel) {
    amqp_channel_open(c, channel);
    check(amqp_get_rpc_reply(c), "channel.open");
}

static void confirm_select(amqp_connection_state_t c, int channel) {
    amqp_confirm_select(c, channel);
    check(amqp_get_rpc_reply(c), "confirm.select");
}

/* Persistent messages of bytes. */
static amqp_basic_properties_t properties(void) {
    amqp_basic_properties_t p;
    memset(&p, 0, sizeof p);
    p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
    p.delivery_mode = 2;
    p.content_type = amqp_cstring_bytes("application/octet-stream");
    return p;
}

static amqp_bytes_t new_body(long size) {
    amqp_bytes_t body = amqp_bytes_malloc(size);
    if (!body.bytes) die("no memory");
    memset(body.bytes, 'x', size);
    return body;
}

static void new_counters(long count) {
    free(marked);
    free(latencies);
    marked = calloc(count + 2, 1);
    latencies = calloc(count, sizeof *latencies);
    if (!marked || !latencies) die("no memory");
    settled = 0;
}

static amqp_table_entry_t text_entry(const char *key, const char *value) {
    amqp_table_entry_t entry = {amqp_cstring_bytes(key), {.kind = AMQP_FIELD_KIND_UTF8}};
    entry.value.value.bytes = amqp_cstring_bytes(value);
    return entry;
}

/* Headers of 0, 1 or 3 entries: job.HEADER_TABLE, job.headers(). */
static void set_headers(amqp_basic_properties_t *p, amqp_table_entry_t *entries, char *trace, int n, long number) {
    if (n == 0) return;
    entries[0] = text_entry("tenant", "north");
    if (n == 3) {
        entries[1] = (amqp_table_entry_t){amqp_cstring_bytes("attempt"), {.kind = AMQP_FIELD_KIND_I32}};
        entries[1].value.value.i32 = number % 5;
        snprintf(trace, TRACE_SIZE, "%012ld", number);
        entries[2] = text_entry("trace", trace);
    }
    p->_flags |= AMQP_BASIC_HEADERS_FLAG;
    p->headers = (amqp_table_t){n, entries};
}

/* Window 0: without confirms. Window 1: latencies are kept. With one header it is the same for all, with three it is new. */
static void publish(
    amqp_connection_state_t c, int channel, const char *queue, long count, long size, long window, int n_headers) {
    amqp_basic_properties_t p = properties();
    amqp_table_entry_t entries[3];
    char trace[TRACE_SIZE];
    amqp_bytes_t body = new_body(size);
    new_counters(count);
    open_channel(c, channel);
    if (window) confirm_select(c, channel);
    set_headers(&p, entries, trace, n_headers, 0);
    start();
    for (long i = 0; i < count; i++) {
        double began = window == 1 ? wall() : 0;
        if (n_headers > 1) set_headers(&p, entries, trace, n_headers, i);
        check_status(
            amqp_basic_publish(c, channel, amqp_empty_bytes, amqp_cstring_bytes(queue), 0, 0, &p, body),
            "basic.publish");
        while (window && (uint64_t)i + 1 - settled >= (uint64_t)window) wait_for_confirm(c);
        if (window == 1) latencies[i] = wall() - began;
    }
    while (window && settled < (uint64_t)count) wait_for_confirm(c);
    if (window) stop();
    check(amqp_channel_close(c, channel, AMQP_REPLY_SUCCESS), "channel.close");
    if (!window) stop();
    amqp_bytes_free(body);
}

static void set_prefetch(amqp_connection_state_t c, int channel, int prefetch) {
    amqp_basic_qos(c, channel, 0, prefetch, 0);
    check(amqp_get_rpc_reply(c), "basic.qos");
}

static void subscribe(amqp_connection_state_t c, int channel, const char *queue) {
    amqp_basic_consume(c, channel, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(c), "basic.consume");
}

static void consume(
    amqp_connection_state_t c, int channel, const char *queue, long count, long size, int prefetch, long ack_every) {
    amqp_envelope_t envelope;
    long bytes = 0;
    open_channel(c, channel);
    set_prefetch(c, channel, prefetch);
    start();
    subscribe(c, channel, queue);
    for (long seen = 1; seen <= count; seen++) {
        amqp_maybe_release_buffers(c);
        check(amqp_consume_message(c, &envelope, NULL, 0), "a delivery");
        bytes += envelope.message.body.len;
        if (seen % ack_every == 0 || seen == count)
            check_status(amqp_basic_ack(c, channel, envelope.delivery_tag, ack_every > 1), "basic.ack");
        amqp_destroy_envelope(&envelope);
    }
    check(amqp_channel_close(c, channel, AMQP_REPLY_SUCCESS), "channel.close");
    stop();
    if (bytes != count * size) die("the bodies had another size in all");
}

/* Nanoseconds of the system's clock, as ticker.py has them. */
static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Publishes each message when it is due. Latencies are those of the confirms, or with a prefetch those of the deliveries. */
static void steady(amqp_connection_state_t c, int channel, const char *queue, long count, long size, int prefetch) {
    const struct timeval at_once = {0, 0};
    amqp_basic_properties_t p = properties();
    amqp_bytes_t body = new_body(size);
    int64_t *due = calloc(count, sizeof *due);
    char command[4096];
    long sent = 0, seen = 0, noted = 0, ack_every = number("ack_every");
    if (!due) die("no memory");
    if (size < (long)sizeof *due) die("a body has no room for a time");
    new_counters(count);
    open_channel(c, channel);
    confirm_select(c, channel);
    snprintf(command, sizeof command, "exec %s %ld %ld", argument("ticker"), number("rate"), count);
    if (prefetch) set_prefetch(c, channel, prefetch);
    FILE *ticks = popen(command, "r");
    if (!ticks) die("the ticker cannot be started");
    start();
    if (prefetch) subscribe(c, channel, queue);
    struct pollfd ready[] = {{fileno(ticks), POLLIN, 0}, {amqp_get_sockfd(c), POLLIN, 0}};
    while (settled < (uint64_t)count || (prefetch && seen < count)) {
        /* What the library has read is not in the socket any more, so its frames are taken before each wait. */
        for (;;) {
            amqp_frame_t frame;
            amqp_message_t message;
            amqp_maybe_release_buffers(c);
            int status = amqp_simple_wait_frame_noblock(c, &frame, &at_once);
            if (status == AMQP_STATUS_TIMEOUT) break;
            check_status(status, "reading a frame");
            if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_DELIVER_METHOD) {
                confirm(&frame);
                for (; !prefetch && noted < (long)settled; noted++) latencies[noted] = (now_ns() - due[noted]) / 1e9;
                continue;
            }
            uint64_t tag = ((amqp_basic_deliver_t *)frame.payload.method.decoded)->delivery_tag;
            int64_t when;
            check(amqp_read_message(c, channel, &message, 0), "a delivery");
            memcpy(&when, message.body.bytes, sizeof when);
            latencies[seen++] = (now_ns() - when) / 1e9;
            amqp_destroy_message(&message);
            if (seen % ack_every == 0 || seen == count)
                check_status(amqp_basic_ack(c, channel, tag, 1), "basic.ack");
        }
        if (settled == (uint64_t)count && (!prefetch || seen == count)) break;
        ready[0].events = sent < count ? POLLIN : 0;
        if (poll(ready + (sent == count), 2 - (sent == count), -1) < 0) die("poll failed");
        if (sent < count && ready[0].revents) {
            long found = read(ready[0].fd, due + sent, (count - sent) * sizeof *due) / (long)sizeof *due;
            if (found <= 0) die("the ticker ended early");
            for (long end = sent + found; sent < end; sent++) {
                memcpy(body.bytes, due + sent, sizeof *due);
                check_status(
                    amqp_basic_publish(c, channel, amqp_empty_bytes, amqp_cstring_bytes(queue), 0, 0, &p, body),
                    "basic.publish");
            }
        }
    }
    check(amqp_channel_close(c, channel, AMQP_REPLY_SUCCESS), "channel.close");
    stop();
    pclose(ticks);
    free(due);
    amqp_bytes_free(body);
}

static void run(amqp_connection_state_t c, int channel, const char *queue, long count) {
    const char *how = argument("how");
    long size = number("size");
    if (strcmp(how, MULTIPLE) == 0)
        consume(c, channel, queue, count, size, number("prefetch"), number("ack_every"));
    else if (strcmp(how, EACH) == 0)
        consume(c, channel, queue, count, size, number("prefetch"), 1);
    else if (strcmp(how, PUBLISH) == 0)
        publish(c, channel, queue, count, size, 0, 0);
    else if (strcmp(how, CONFIRMED) == 0)
        publish(c, channel, queue, count, size, number("window"), 0);
    else if (strcmp(how, HEADER) == 0)
        publish(c, channel, queue, count, size, number("window"), 1);
    else if (strcmp(how, HEADERS) == 0)
        publish(c, channel, queue, count, size, number("window"), 3);
    else if (strcmp(how, STEADY_CONFIRM) == 0)
        steady(c, channel, queue, count, size, 0);
    else if (strcmp(how, STEADY_CONSUME) == 0)
        steady(c, channel, queue, count, size, number("prefetch"));
    else
        die("there is no such entry");
}

static int ascending(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static int describe(void) {
    static const char *entries[][2] = {
        {"publish", PUBLISH},
        {"confirmed", CONFIRMED},
        {"tasks", CONFIRMED},
        {"header", HEADER},
        {"headers", HEADERS},
        {"one-by-one", CONFIRMED},
        {"consume", MULTIPLE},
        {"consume", EACH},
        {"steady-confirm", STEADY_CONFIRM},
        {"steady-consume", STEADY_CONSUME},
    };
    size_t n = sizeof entries / sizeof *entries;
    printf("{\"event\": \"described\", \"title\": \"rabbitmq-c\", \"version\": \"rabbitmq-c %s\", \"entries\": [",
           amqp_version());
    for (size_t i = 0; i < n; i++)
        printf("{\"kind\": \"%s\", \"how\": \"%s\", \"share\": 1}%s", entries[i][0], entries[i][1], i + 1 < n ? ", " : "");
    printf("], \"not_possible\": {}}\n");
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) die("an argument is missing");
    if (strcmp(argv[1], "describe") == 0) return describe();
    arguments_count = argc - 2;
    arguments = argv + 2;
    amqp_connection_state_t c = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(c);
    if (!socket) die("no memory");
    check_status(amqp_socket_open(socket, argument("host"), number("port")), "connecting");
    check(amqp_login(c, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest"), "login");
    long count = number("count");
    if (number("warm_up_count")) run(c, 1, argument("warm_up_queue"), number("warm_up_count"));
    run(c, 2, argument("queue"), count);
    printf("{\"event\": \"measured\", \"messages\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
           "\"peak_rss_bytes\": %ld",
           count, took_wall, took_cpu, peak);
    if (strcmp(argument("kind"), "one-by-one") == 0 || number("rate")) {
        qsort(latencies, count, sizeof *latencies, ascending);
        printf(", \"latency_p50_s\": %.9f, \"latency_p99_s\": %.9f", latencies[(count - 1) / 2],
               latencies[(count * 99 + 99) / 100 - 1]);
    }
    printf("}\n");
    amqp_connection_close(c, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(c);
    return 0;
}
