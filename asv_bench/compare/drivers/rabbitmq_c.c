/* rabbitmq-c's side of the comparison: one connection, the library's plain functions. The protocol is in __init__.py. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <fcntl.h>
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

static void wait_for_confirm(amqp_connection_state_t c) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(c);
    check_status(amqp_simple_wait_frame(c, &frame), "reading a confirm");
    if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
        die("the broker sent something else where basic.ack was due");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    if (!ack->multiple)
        marked[ack->delivery_tag] = 1;
    else if (ack->delivery_tag > settled)
        settled = ack->delivery_tag;
    while (marked[settled + 1]) settled++;
}

static void open_channel(amqp_connection_state_t c, int channel) {
    amqp_channel_open(c, channel);
    check(amqp_get_rpc_reply(c), "channel.open");
}

/* Window 0: without confirms. Window 1: latencies are kept. */
static void publish(amqp_connection_state_t c, int channel, const char *queue, long count, long size, long window) {
    amqp_basic_properties_t p;
    memset(&p, 0, sizeof p);
    p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
    p.delivery_mode = 2;
    p.content_type = amqp_cstring_bytes("application/octet-stream");
    amqp_bytes_t body = amqp_bytes_malloc(size);
    memset(body.bytes, 'x', size);
    marked = calloc(count + 2, 1);
    latencies = calloc(count, sizeof *latencies);
    if (!marked || !latencies || !body.bytes) die("no memory");
    settled = 0;
    open_channel(c, channel);
    if (window) {
        amqp_confirm_select(c, channel);
        check(amqp_get_rpc_reply(c), "confirm.select");
    }
    start();
    for (long i = 0; i < count; i++) {
        double began = window == 1 ? wall() : 0;
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
    free(marked);
    amqp_bytes_free(body);
}

static void consume(
    amqp_connection_state_t c, int channel, const char *queue, long count, long size, int prefetch, long ack_every) {
    amqp_envelope_t envelope;
    long bytes = 0;
    open_channel(c, channel);
    amqp_basic_qos(c, channel, 0, prefetch, 0);
    check(amqp_get_rpc_reply(c), "basic.qos");
    start();
    amqp_basic_consume(c, channel, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(c), "basic.consume");
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

static void run(amqp_connection_state_t c, int channel, const char *queue, long count) {
    const char *how = argument("how");
    long size = number("size");
    if (strcmp(how, MULTIPLE) == 0)
        consume(c, channel, queue, count, size, number("prefetch"), number("ack_every"));
    else if (strcmp(how, EACH) == 0)
        consume(c, channel, queue, count, size, number("prefetch"), 1);
    else if (strcmp(how, PUBLISH) == 0)
        publish(c, channel, queue, count, size, 0);
    else if (strcmp(how, CONFIRMED) == 0)
        publish(c, channel, queue, count, size, number("window"));
    else
        die("there is no such entry");
}

static int ascending(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static int describe(void) {
    printf("{\"event\": \"described\", \"title\": \"rabbitmq-c\", \"version\": \"rabbitmq-c %s\", \"entries\": [",
           amqp_version());
    printf("{\"kind\": \"publish\", \"how\": \"%s\", \"share\": 1}, ", PUBLISH);
    printf("{\"kind\": \"confirmed\", \"how\": \"%s\", \"share\": 1}, ", CONFIRMED);
    printf("{\"kind\": \"one-by-one\", \"how\": \"%s\", \"share\": 1}, ", CONFIRMED);
    printf("{\"kind\": \"consume\", \"how\": \"%s\", \"share\": 1}, ", MULTIPLE);
    printf("{\"kind\": \"consume\", \"how\": \"%s\", \"share\": 1}], \"not_possible\": {}}\n", EACH);
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
    if (strcmp(argument("kind"), "one-by-one") == 0) {
        qsort(latencies, count, sizeof *latencies, ascending);
        printf(", \"latency_p50_s\": %.9f, \"latency_p99_s\": %.9f", latencies[(count - 1) / 2],
               latencies[(count * 99 + 99) / 100 - 1]);
    }
    printf("}\n");
    amqp_connection_close(c, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(c);
    return 0;
}
