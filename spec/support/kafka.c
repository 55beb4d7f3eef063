/*
** A Kafka cluster for the specs, of librdkafka's mock brokers. It prints its process id and the
** addresses of its brokers, and obeys standard input, until that ends:
**
**     topic NAME PARTITIONS    makes a topic; others have 4 partitions
**     down, up                 the brokers hang up and refuse connections; accept them again
**     delay MILLISECONDS       before each answer
**     fail API COUNT CODE      the next requests of that kind get this error code
**     heal API                 no more of these errors
**     refuse TOPIC CODE        metadata of the topic have this error code
**     read TOPIC               prints the records of a topic, a line each: partition, timestamp,
**                              key, value, and NAME=VALUE of each header, all as hexadecimal
**                              digits; null is -
**
** After each command it prints "ok".
*/
#define _POSIX_C_SOURCE 200809L

#include <librdkafka/rdkafka.h> /* before the next */
#include <librdkafka/rdkafka_mock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *reason) {
  fprintf(stderr, "%s\n", reason);
  exit(1);
}

static rd_kafka_t *make(rd_kafka_type_t type, const char *bootstraps) {
  char reason[512];
  rd_kafka_conf_t *conf = rd_kafka_conf_new();
  rd_kafka_conf_set(conf, "log_level", "0", reason, sizeof reason);
  if (bootstraps != NULL) {
    rd_kafka_conf_set(conf, "bootstrap.servers", bootstraps, reason, sizeof reason);
    rd_kafka_conf_set(conf, "group.id", "spec", reason, sizeof reason);
    rd_kafka_conf_set(conf, "enable.partition.eof", "true", reason, sizeof reason);
    rd_kafka_conf_set(conf, "fetch.wait.max.ms", "5", reason, sizeof reason);
    rd_kafka_conf_set(conf, "fetch.error.backoff.ms", "5", reason, sizeof reason);
  }
  rd_kafka_t *handle = rd_kafka_new(type, conf, reason, sizeof reason);
  if (handle == NULL) fail(reason);
  return handle;
}

static void print_bytes(const void *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    printf("%02x", ((const unsigned char *)bytes)[i]);
  if (bytes == NULL) printf("-");
}

static void print_record(const rd_kafka_message_t *message) {
  rd_kafka_timestamp_type_t type;
  rd_kafka_headers_t *headers;
  const char *name;
  const void *value;
  size_t size;
  printf("%d %lld ", (int)message->partition,
         (long long)rd_kafka_message_timestamp(message, &type));
  print_bytes(message->key, message->key_len);
  printf(" ");
  print_bytes(message->payload, message->len);
  if (rd_kafka_message_headers(message, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR)
    for (size_t i = 0;
         rd_kafka_header_get_all(headers, i, &name, &value, &size) == RD_KAFKA_RESP_ERR_NO_ERROR;
         i++) {
      printf(" ");
      print_bytes(name, strlen(name));
      printf("=");
      print_bytes(value, size);
    }
  printf("\n");
}

/* Assigns all partitions of a topic, from the beginning; returns how many there are. */
static int assign(rd_kafka_t *consumer, const char *topic) {
  const rd_kafka_metadata_t *metadata;
  rd_kafka_topic_t *handle = rd_kafka_topic_new(consumer, topic, NULL);
  rd_kafka_resp_err_t error = rd_kafka_metadata(consumer, 0, handle, &metadata, 30000);
  if (error != RD_KAFKA_RESP_ERR_NO_ERROR) fail(rd_kafka_err2str(error));
  int count = metadata->topics[0].partition_cnt;
  rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
  for (int i = 0; i < count; i++)
    rd_kafka_topic_partition_list_add(list, topic, i)->offset = RD_KAFKA_OFFSET_BEGINNING;
  rd_kafka_assign(consumer, list);
  rd_kafka_topic_partition_list_destroy(list);
  rd_kafka_metadata_destroy(metadata);
  rd_kafka_topic_destroy(handle);
  return count;
}

static void read_topic(const char *bootstraps, const char *topic) {
  rd_kafka_t *consumer = make(RD_KAFKA_CONSUMER, bootstraps);
  int left = assign(consumer, topic);
  while (left > 0) {
    rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 30000);
    if (message == NULL) fail("no record within 30 s");
    if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
      print_record(message);
    else if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
      left--;
    rd_kafka_message_destroy(message);
  }
  rd_kafka_destroy(consumer);
}

static void push_errors(rd_kafka_mock_cluster_t *cluster, int api, int count, int code) {
  rd_kafka_resp_err_t error = (rd_kafka_resp_err_t)code;
  while (count-- > 0)
    rd_kafka_mock_push_request_errors_array(cluster, (int16_t)api, 1, &error);
}

static void obey(rd_kafka_mock_cluster_t *cluster, const char *line) {
  char name[256];
  int a, b, c;
  if (sscanf(line, "topic %255s %d", name, &a) == 2)
    rd_kafka_mock_topic_create(cluster, name, a, 1);
  else if (sscanf(line, "delay %d", &a) == 1)
    rd_kafka_mock_broker_set_rtt(cluster, -1, a);
  else if (sscanf(line, "fail %d %d %d", &a, &b, &c) == 3)
    push_errors(cluster, a, b, c);
  else if (sscanf(line, "heal %d", &a) == 1)
    rd_kafka_mock_clear_request_errors(cluster, (int16_t)a);
  else if (sscanf(line, "refuse %255s %d", name, &a) == 2)
    rd_kafka_mock_topic_set_error(cluster, name, (rd_kafka_resp_err_t)a);
  else if (sscanf(line, "read %255s", name) == 1)
    read_topic(rd_kafka_mock_cluster_bootstraps(cluster), name);
  else if (strcmp(line, "down\n") == 0)
    rd_kafka_mock_broker_set_down(cluster, -1);
  else if (strcmp(line, "up\n") == 0)
    rd_kafka_mock_broker_set_up(cluster, -1);
  else
    fail(line);
}

int main(int argc, char **argv) {
  char line[512];
  signal(SIGINT, SIG_IGN); /* it ends with its input, after the specs */
  rd_kafka_t *handle = make(RD_KAFKA_PRODUCER, NULL);
  rd_kafka_mock_cluster_t *cluster =
      rd_kafka_mock_cluster_new(handle, argc > 1 ? atoi(argv[1]) : 1);
  if (cluster == NULL) fail("no cluster");
  printf("%d %s\n", (int)getpid(), rd_kafka_mock_cluster_bootstraps(cluster));
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) != NULL) {
    obey(cluster, line);
    printf("ok\n");
    fflush(stdout);
  }
  rd_kafka_mock_cluster_destroy(cluster);
  rd_kafka_destroy(handle);
  return 0;
}
