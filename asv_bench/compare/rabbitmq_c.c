/* rabbitmq-c's side of the comparison: one connection, one channel, the library's plain functions.
 *
 *   rabbitmq_c publish HOST PORT QUEUE COUNT SIZE WINDOW    persistent messages; WINDOW 0: no confirms
 *   rabbitmq_c consume HOST PORT QUEUE COUNT PREFETCH       one basic.ack for each delivery
 *
 * Prints one JSON object: messages, seconds, and user + system CPU seconds of the measured part. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static void die(const char *what) {
    fprintf(stderr, "rabbitmq_c: %s failed\n", what);
    exit(1);
}

static void check(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) die(what);
}

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

/* Publishings that are settled: all up to `first`, and those marked beyond it. */
static uint64_t first;
static char *marked;

static void wait_for_confirm(amqp_connection_state_t c) {
    amqp_frame_t frame;
    amqp_maybe_release_buffers(c);
    if (amqp_simple_wait_frame(c, &frame) != AMQP_STATUS_OK) die("reading a confirm");
    if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD) die("a confirm");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    if (!ack->multiple)
        marked[ack->delivery_tag] = 1;
    else if (ack->delivery_tag > first)
        first = ack->delivery_tag;
    while (marked[first + 1]) first++;
}

static void publish(amqp_connection_state_t c, const char *queue, long count, long size, long window) {
    amqp_basic_properties_t p;
    memset(&p, 0, sizeof p);
    p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
    p.delivery_mode = 2;
    p.content_type = amqp_cstring_bytes("application/octet-stream");
    amqp_bytes_t body = amqp_bytes_malloc(size);
    memset(body.bytes, 'x', size);
    marked = calloc(count + 2, 1);
    if (!marked) die("calloc");
    for (long i = 0; i < count; i++) {
        if (amqp_basic_publish(c, 1, amqp_empty_bytes, amqp_cstring_bytes(queue), 0, 0, &p, body) != AMQP_STATUS_OK)
            die("basic.publish");
        while (window && (uint64_t)i + 1 - first >= (uint64_t)window) wait_for_confirm(c);
    }
    while (window && first < (uint64_t)count) wait_for_confirm(c);
    free(marked);
    amqp_bytes_free(body);
}

static void consume(amqp_connection_state_t c, const char *queue, long count, int prefetch) {
    amqp_envelope_t envelope;
    amqp_basic_qos(c, 1, 0, prefetch, 0);
    check(amqp_get_rpc_reply(c), "basic.qos");
    amqp_basic_consume(c, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(c), "basic.consume");
    for (long i = 0; i < count; i++) {
        amqp_maybe_release_buffers(c);
        check(amqp_consume_message(c, &envelope, NULL, 0), "a delivery");
        if (amqp_basic_ack(c, 1, envelope.delivery_tag, 0)) die("basic.ack");
        amqp_destroy_envelope(&envelope);
    }
}

int main(int argc, char **argv) {
    if (argc < 7) die("reading the arguments");
    amqp_connection_state_t c = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(c);
    if (!socket || amqp_socket_open(socket, argv[2], atoi(argv[3]))) die("connecting");
    check(amqp_login(c, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest"), "login");
    amqp_channel_open(c, 1);
    check(amqp_get_rpc_reply(c), "channel.open");
    long count = atol(argv[5]);
    long window = argc > 7 ? atol(argv[7]) : 0;
    int publishing = strcmp(argv[1], "publish") == 0;
    if (publishing && window) {
        amqp_confirm_select(c, 1);
        check(amqp_get_rpc_reply(c), "confirm.select");
    }
    double t0 = wall(), c0 = cpu();
    if (publishing)
        publish(c, argv[4], count, atol(argv[6]), window);
    else
        consume(c, argv[4], count, atoi(argv[6]));
    printf("{\"messages\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f}\n", count, wall() - t0, cpu() - c0);
    amqp_connection_close(c, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(c);
    return 0;
}
